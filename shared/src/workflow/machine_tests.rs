use std::collections::HashSet;

use proptest::prelude::*;
use serde_json::json;

use super::super::decode_workflow;
use super::*;

fn machine(body: serde_json::Value) -> Machine {
    let plan = Plan::new(decode_workflow(body.to_string().as_bytes()).unwrap()).unwrap();
    let mut machine = Machine::new(Arc::new(plan));
    machine.start();
    machine
}

fn step(name: &str, more: serde_json::Value) -> serde_json::Value {
    let mut step = json!({"name": name, "model": "m", "input": {}});
    step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    step
}

fn ended(state: State, output: &str) -> Ended {
    let output = (!output.is_empty()).then(|| RawValue::from_string(output.to_owned()).unwrap());
    let why = (state != State::Succeeded).then(|| error("broken", "as told"));
    Ended { state, output, error: why, attempt: 1, timings: StepTimings::default() }
}

/// What is to be done, in words.
fn polled(machine: &mut Machine) -> Vec<String> {
    let mut words = Vec::new();
    while let Some(command) = machine.poll() {
        let name = |step: u32| machine.plan().step(step).unwrap().name.to_string();
        let item = |item: Option<u32>| item.map_or_else(String::new, |item| format!("[{item}]"));
        words.push(match command {
            Command::Submit { step, item: at, input } => format!("{}{} {}", name(step), item(at), input.get()),
            Command::Settle { step } => {
                let shown = machine.shown(step).unwrap();
                format!("{} is {} ({})", name(step), shown.state.as_str(), shown.error.map_or("", |why| &why.code))
            }
            Command::Stop { step, item: at } => format!("stop {}{}", name(step), item(at)),
        });
    }
    words
}

fn end(machine: &mut Machine, name: &str, state: State, output: &str) -> Vec<String> {
    let step = machine.plan().find(name).unwrap();
    assert!(machine.handle_ended(step, None, ended(state, output)), "{name} runs");
    assert!(!machine.handle_ended(step, None, ended(State::Failed, "")), "it ends once");
    polled(machine)
}

#[test]
fn a_diamond_passes_its_data_on() {
    let mut machine = machine(json!({"tasks": [
        step("a", json!({"input": {"n": 1}})),
        step("b", json!({"input": {"$from": "a", "path": "/output/rows"}})),
        step("c", json!({"input": [{"$from": "a", "path": "/output/rows/1"}, {"$from": "a", "path": "/state"}]})),
        step("d", json!({"input": {"b": {"$from": "b"}, "c": {"$from": "c"}, "e": {"$from": "c", "path": "/error/code", "default": null}}})),
    ]}));
    assert_eq!(polled(&mut machine), [r#"a {"n":1}"#]);
    assert_eq!(
        end(&mut machine, "a", State::Succeeded, r#"{"rows": [1.50, 2]}"#),
        [r#"b [1.50, 2]"#, r#"c [2,"succeeded"]"#]
    );
    assert_eq!(end(&mut machine, "c", State::Succeeded, "3"), [""; 0]);
    assert_eq!(end(&mut machine, "b", State::Succeeded, "\"x\""), [r#"d {"b":"x","c":3,"e":null}"#]);
    assert_eq!(machine.held_bytes, 0, "what was read is let go");
    assert_eq!(end(&mut machine, "d", State::Succeeded, "[0]"), [""; 0]);
    assert_eq!((machine.state(), machine.outputs()["d"].get()), (WorkflowState::Succeeded, "[0]"));
}

#[test]
fn a_fan_out_is_joined_in_the_order_of_its_array() {
    let body = json!({"tasks": [
        step("split", json!({})),
        step("part", json!({"for_each": {"$from": "split", "path": "/output/parts"}, "input": {"of": {"$item": "/id"}}})),
        step("join", json!({"input": [{"$from": "part"}, {"$from": "part", "path": "/output/0"}]})),
    ]});
    let mut machine = self::machine(body.clone());
    polled(&mut machine);
    let parts = end(&mut machine, "split", State::Succeeded, r#"{"parts": [{"id": 7}, {"id": 8}, {"id": 9}]}"#);
    assert_eq!(parts, [r#"part[0] {"of":7}"#, r#"part[1] {"of":8}"#, r#"part[2] {"of":9}"#]);
    for item in [2, 0] {
        assert!(machine.handle_ended(1, Some(item), ended(State::Succeeded, &format!("{item}.0"))));
        assert!(!machine.handle_ended(1, Some(item), ended(State::Failed, "")));
    }
    assert!(polled(&mut machine).is_empty());
    machine.handle_ended(1, Some(1), ended(State::Succeeded, ""));
    assert_eq!(polled(&mut machine), ["join [[0.0,null,2.0],0.0]"]);
    assert_eq!(machine.held_bytes, 0);

    let mut empty = self::machine(body.clone());
    assert_eq!(polled(&mut empty), ["split {}"]);
    // The first of no members is missing.
    assert_eq!(end(&mut empty, "split", State::Succeeded, r#"{"parts": []}"#), ["join is failed (missing_output)"]);
    assert_eq!(empty.error().unwrap().message, "step join: the result of step part has no \"/output/0\"");

    for (output, code) in [(r#"{"parts": 1}"#, "for_each_not_array"), ("{}", "missing_output")] {
        let mut machine = self::machine(body.clone());
        polled(&mut machine);
        assert_eq!(end(&mut machine, "split", State::Succeeded, output), ["join is cancelled (dependency_failed)"]);
        assert_eq!((machine.state(), &*machine.error().unwrap().code), (WorkflowState::Failed, code));
    }
}

#[test]
fn a_fan_out_of_which_one_fails_fails_and_tells_of_the_rest() {
    let body = |policy: &str| {
        json!({"on_failure": policy, "tasks": [
            step("part", json!({"for_each": [1, 2, 3], "input": {"$item": ""}})),
            step("join", json!({"input": {"$from": "part"}})),
        ]})
    };
    for (policy, first, last) in [
        ("cancel_dependents", vec![], vec!["join is cancelled (dependency_failed)"]),
        ("continue", vec![], vec!["join [0,null,2]"]),
        ("fail_fast", vec!["join is cancelled (fail_fast)", "stop part[2]"], vec![]),
    ] {
        let mut machine = self::machine(body(policy));
        assert_eq!(polled(&mut machine), ["part[0] 1", "part[1] 2", "part[2] 3"]);
        machine.handle_ended(0, Some(0), ended(State::Succeeded, "0"));
        machine.handle_ended(0, Some(1), ended(State::Failed, ""));
        let mut stopped = polled(&mut machine);
        stopped.sort_unstable();
        assert_eq!(stopped, first, "{policy}");
        machine.handle_ended(0, Some(2), ended(State::Succeeded, "2"));
        assert_eq!(polled(&mut machine), last, "{policy}");
        let part = machine.shown(0).unwrap();
        assert_eq!((part.state, &*part.error.unwrap().code), (StepState::Failed, "items_failed"), "{policy}");
        assert!(part.error.unwrap().message.contains("1 of 3"));
    }
}

#[test]
fn branches_that_are_not_taken_are_skipped_and_joined() {
    let body = json!({"tasks": [
        step("score", json!({})),
        step("good", json!({"when": {"$from": "score", "path": "/output/s", "gte": 0.9}})),
        step("bad", json!({"when": {"$from": "score", "path": "/output/s", "lt": 0.9}})),
        step("after_bad", json!({"depends_on": ["bad"]})),
        step("join", json!({"after": "any_succeeded", "input": [{"$from": "good", "default": 0}, {"$from": "bad", "default": 0}]})),
        step("cleanup", json!({"after": "all_done", "depends_on": ["after_bad"], "input": {"$from": "after_bad", "path": "/state"}})),
    ]});
    let mut machine = self::machine(body);
    polled(&mut machine);
    assert_eq!(
        end(&mut machine, "score", State::Succeeded, r#"{"s": 0.95}"#),
        [
            "good {}",
            "bad is skipped (condition_false)",
            "after_bad is skipped (dependency_skipped)",
            "cleanup \"skipped\""
        ]
    );
    assert_eq!(end(&mut machine, "good", State::Succeeded, "1"), ["join [1,0]"]);
    end(&mut machine, "cleanup", State::Succeeded, "");
    end(&mut machine, "join", State::Succeeded, "");
    assert_eq!((machine.state(), machine.error()), (WorkflowState::Succeeded, None));
}

#[test]
fn a_policy_says_what_a_failure_does_to_the_others() {
    let body = |policy: &str| {
        json!({"on_failure": policy, "tasks": [
            step("a", json!({})),
            step("b", json!({"depends_on": ["a"]})),
            step("c", json!({"depends_on": ["b"], "after": "all_done"})),
            step("x", json!({})),
            step("y", json!({"depends_on": ["x"]})),
        ]})
    };
    let mut machine = self::machine(body("cancel_dependents"));
    polled(&mut machine);
    assert_eq!(end(&mut machine, "a", State::Failed, ""), ["b is cancelled (dependency_failed)", "c {}"]);
    assert_eq!(end(&mut machine, "x", State::Succeeded, ""), ["y {}"]);
    end(&mut machine, "y", State::Succeeded, "");
    end(&mut machine, "c", State::Succeeded, "");
    assert_eq!(machine.state(), WorkflowState::Failed);
    assert_eq!(*machine.error().unwrap(), error("broken", "step a: as told"));

    let mut machine = self::machine(body("fail_fast"));
    polled(&mut machine);
    let mut done = end(&mut machine, "a", State::Failed, "");
    done.sort_unstable();
    assert_eq!(
        done,
        ["b is cancelled (fail_fast)", "c is cancelled (fail_fast)", "stop x", "y is cancelled (fail_fast)"]
    );
    assert!(!machine.is_over(), "x runs");
    end(&mut machine, "x", State::Succeeded, "");
    assert_eq!(machine.state(), WorkflowState::Failed);

    let mut machine = self::machine(body("continue"));
    polled(&mut machine);
    assert_eq!(end(&mut machine, "a", State::Failed, ""), ["b {}"]);
    for name in ["b", "c", "x", "y"] {
        end(&mut machine, name, State::Succeeded, "");
    }
    assert_eq!(machine.state(), WorkflowState::Failed, "one did not succeed");
}

#[test]
fn a_cancelled_workflow_and_one_that_is_too_late_begin_nothing_more() {
    let body = json!({"tasks": [step("a", json!({})), step("b", json!({"depends_on": ["a"]})), step("x", json!({}))]});
    let mut machine = self::machine(body.clone());
    polled(&mut machine);
    end(&mut machine, "x", State::Succeeded, "");
    machine.cancel();
    machine.cancel();
    assert_eq!(polled(&mut machine), ["stop a", "b is cancelled (cancelled)"]);
    // It had ended before it was told.
    end(&mut machine, "a", State::Succeeded, "");
    assert_eq!(machine.state(), WorkflowState::Cancelled);

    let mut machine = self::machine(body);
    polled(&mut machine);
    machine.expire();
    assert_eq!(polled(&mut machine), ["b is expired (expired)"]);
    end(&mut machine, "a", State::Succeeded, "");
    end(&mut machine, "x", State::Expired, "");
    assert_eq!(machine.state(), WorkflowState::Expired);
    machine.cancel();
    assert_eq!(machine.state(), WorkflowState::Expired, "it has ended");

    for (code, state) in [
        ("deadline_unreachable", WorkflowState::Expired),
        ("deadline_shed", WorkflowState::Expired),
        ("unknown_model", WorkflowState::Failed),
    ] {
        let mut machine = self::machine(json!({"tasks": [step("a", json!({}))]}));
        polled(&mut machine);
        let refused = Ended { error: Some(error(code, "as told")), ..ended(State::Rejected, "") };
        assert!(machine.handle_ended(0, None, refused));
        assert_eq!(machine.state(), state, "{code}");
    }
}

/// What becomes of each step, by looking at all of them again and again.
fn naive(graph: &Graph) -> Vec<StepState> {
    let mut states = vec![StepState::Blocked; graph.steps.len()];
    loop {
        let before = states.clone();
        for (at, (on, after, outcome)) in graph.steps.iter().enumerate() {
            let of: Vec<StepState> = on.iter().map(|on| before[*on]).collect();
            if before[at] != StepState::Blocked || !of.iter().all(|state| state.is_terminal()) {
                continue;
            }
            let good = of.iter().filter(|state| **state == StepState::Succeeded).count();
            let failed = of.iter().any(|state| has_failed(*state));
            let skipped = of.contains(&StepState::Skipped);
            let goes_on = graph.policy == "continue";
            states[at] = match *after {
                "all_done" => *outcome,
                "any_succeeded" if good > 0 || of.is_empty() => *outcome,
                "any_succeeded" if failed => StepState::Cancelled,
                "any_succeeded" => StepState::Skipped,
                _ if failed && !goes_on => StepState::Cancelled,
                _ if skipped => StepState::Skipped,
                _ => *outcome,
            };
        }
        if states == before {
            return states;
        }
    }
}

#[derive(Clone, Debug)]
struct Graph {
    policy: &'static str,
    /// On what each depends, all of it before it; when it runs; and what comes of it then.
    steps: Vec<(Vec<usize>, &'static str, StepState)>,
}

fn any_graph() -> impl Strategy<Value = Graph> {
    let outcome = prop_oneof![
        6 => Just(StepState::Succeeded),
        1 => Just(StepState::Failed),
        1 => Just(StepState::Rejected),
        1 => Just(StepState::Skipped),
    ];
    let after = prop_oneof![4 => Just("all_succeeded"), 1 => Just("any_succeeded"), 1 => Just("all_done")];
    let one = (proptest::collection::vec(any::<proptest::sample::Index>(), 0..4), after, outcome);
    let policy = proptest::sample::select(vec!["cancel_dependents", "continue", "fail_fast"]);
    (policy, proptest::collection::vec(one, 1..30)).prop_map(|(policy, steps)| Graph {
        policy,
        steps: steps
            .into_iter()
            .enumerate()
            .map(|(at, (on, after, outcome))| {
                let mut on: Vec<usize> = on.into_iter().filter(|_| at > 0).map(|on| on.index(at)).collect();
                on.sort_unstable();
                on.dedup();
                (on, after, outcome)
            })
            .collect(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn whatever_ends_in_whatever_order_becomes_what_it_is_to_become(
        graph in any_graph(),
        picks in proptest::collection::vec(any::<proptest::sample::Index>(), 40),
        cancel_after in 0..60_usize,
    ) {
        let tasks = graph.steps.iter().enumerate().map(|(at, (on, after, outcome))| {
            let on: Vec<String> = on.iter().map(|on| format!("s{on}")).collect();
            let mut more = json!({"depends_on": on, "after": after});
            if *outcome == StepState::Skipped {
                // Never holds.
                more["when"] = json!({"any": []});
            }
            step(&format!("s{at}"), more)
        });
        let mut machine = machine(json!({"on_failure": graph.policy, "tasks": tasks.collect::<Vec<_>>()}));
        let (mut runs, mut submitted, mut settled) = (Vec::new(), HashSet::new(), HashSet::new());
        for round in 0..200 {
            while let Some(command) = machine.poll() {
                match command {
                    Command::Submit { step, item, .. } => {
                        prop_assert!(item.is_none() && submitted.insert(step), "sent once");
                        for on in &machine.plan().step(step).unwrap().depends_on {
                            prop_assert!(machine.shown(*on).unwrap().state.is_terminal());
                        }
                        runs.push(step);
                    }
                    Command::Settle { step } => prop_assert!(settled.insert(step) && !submitted.contains(&step)),
                    Command::Stop { step, .. } => prop_assert!(runs.contains(&step)),
                }
            }
            if round == cancel_after {
                machine.cancel();
                continue;
            }
            if runs.is_empty() {
                break;
            }
            let step = runs.swap_remove(picks[round % picks.len()].index(runs.len()));
            let state = match graph.steps[step as usize].2 {
                StepState::Failed => State::Failed,
                StepState::Rejected => State::Rejected,
                _ => State::Succeeded,
            };
            prop_assert!(machine.handle_ended(step, None, ended(state, "1")));
        }
        prop_assert!(machine.is_over(), "it comes to an end");
        prop_assert_eq!(submitted.len() + settled.len(), graph.steps.len());
        prop_assert_eq!(machine.held_bytes, 0);
        let states: Vec<StepState> = (0..graph.steps.len() as u32).map(|step| machine.shown(step).unwrap().state).collect();
        let all_well = states.iter().all(|state| !has_failed(*state));
        prop_assert_eq!(all_well, machine.state() == WorkflowState::Succeeded);
        prop_assert_eq!(machine.error().is_some(), machine.state() == WorkflowState::Failed || machine.error().is_some());
        if graph.policy != "fail_fast" && !machine.is_cancelled {
            prop_assert_eq!(states, naive(&graph));
        }
    }
}
