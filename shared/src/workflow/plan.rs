//! The graph of a workflow, checked: what depends on what, and in which order it can run at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::json::members;
use super::template::{Hole, Reference, With, holes};
use super::{After, Condition, OnFailure, Over, Step, Workflow, limits};
use crate::decode::Invalid;
use crate::task::Task;

/// A step and its place in the graph. Steps are named by their place among the tasks of the workflow.
#[derive(Clone, Debug)]
pub struct PlannedStep {
    pub name: Arc<str>,
    pub task: Task,
    pub after: After,
    pub(super) when: Option<Condition>,
    pub(super) for_each: Option<Over>,
    pub(super) holes: Vec<Hole>,
    /// Each once, in their order.
    pub depends_on: Vec<u32>,
    pub dependents: Vec<u32>,
    /// Of what it depends on, what it reads the result of.
    pub(super) reads: Vec<u32>,
}

impl PlannedStep {
    /// Whether it is one task for each member of an array.
    pub fn is_fanned_out(&self) -> bool {
        self.for_each.is_some()
    }
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Plan {
    pub steps: Vec<PlannedStep>,
    pub on_failure: OnFailure,
    pub metadata: BTreeMap<String, String>,
    by_name: BTreeMap<Arc<str>, u32>,
    /// Every step after all that it depends on.
    order: Vec<u32>,
    fingerprint: u128,
}

fn refused(at: usize, field: &str, message: impl std::fmt::Display) -> Invalid {
    Invalid::field(format!("tasks[{at}].{field}"), message)
}

impl Plan {
    /// # Errors
    /// For names that are there twice or are not there, for what depends on itself, with the way round (`a → b → a`), and for
    /// references that can never find anything.
    pub fn new(workflow: Workflow) -> Result<Self, Invalid> {
        let Workflow { tasks, on_failure, metadata, fingerprint, .. } = workflow;
        let mut by_name: BTreeMap<Arc<str>, u32> = BTreeMap::new();
        for (at, step) in tasks.iter().enumerate() {
            if let Some(first) = by_name.insert(step.name.as_str().into(), at as u32) {
                return Err(refused(at, "name", format_args!("{:?} is the name of tasks[{first}] already", step.name)));
            }
        }
        let fanned_out: Vec<bool> = tasks.iter().map(|step| step.for_each.is_some()).collect();
        let (mut edges, mut items) = (0, 0);
        let mut steps = Vec::with_capacity(tasks.len());
        for (at, step) in tasks.into_iter().enumerate() {
            if let Some(Over::Given(array)) = &step.for_each {
                items += members(array).map_or(0, |members| members.len());
            }
            let step = planned(at, step, &by_name, &fanned_out)?;
            edges += step.depends_on.len();
            if edges > limits::EDGES {
                let why = format!("with this step there are over {} dependencies", limits::EDGES);
                return Err(Invalid { code: "too_large", ..refused(at, "depends_on", why) });
            }
            if items > limits::ITEMS {
                let why = format!("with this step there are over {} tasks of for_each", limits::ITEMS);
                return Err(Invalid { code: "too_large", ..refused(at, "for_each", why) });
            }
            steps.push(step);
        }
        for at in 0..steps.len() {
            let depends_on = steps.get(at).map(|step| step.depends_on.clone()).unwrap_or_default();
            for on in depends_on {
                if let Some(step) = steps.get_mut(on as usize) {
                    step.dependents.push(at as u32);
                }
            }
        }
        let order = sorted(&steps)?;
        Ok(Self { steps, on_failure, metadata, by_name, order, fingerprint })
    }

    pub fn len(&self) -> usize {
        self.steps.len()
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub fn find(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    pub fn step(&self, step: u32) -> Option<&PlannedStep> {
        self.steps.get(step as usize)
    }

    pub fn fingerprint(&self) -> u128 {
        self.fingerprint
    }

    /// The longest way from the end of each step to the end of the workflow, when each step takes so long.
    pub fn remaining(&self, seconds: impl Fn(u32) -> f64) -> Vec<f64> {
        let mut remaining = vec![0.0_f64; self.steps.len()];
        for &step in self.order.iter().rev() {
            let Some(planned) = self.step(step) else { continue };
            let after = |next: &u32| seconds(*next) + remaining.get(*next as usize).copied().unwrap_or(0.0);
            let longest = planned.dependents.iter().map(after).fold(0.0, f64::max);
            if let Some(remaining) = remaining.get_mut(step as usize) {
                *remaining = longest;
            }
        }
        remaining
    }
}

fn planned(
    at: usize,
    step: Step,
    by_name: &BTreeMap<Arc<str>, u32>,
    fanned_out: &[bool],
) -> Result<PlannedStep, Invalid> {
    let Step { name, depends_on, after, when, for_each, task } = step;
    let find = |field: &str, named: &str| {
        let found = by_name
            .get(named)
            .copied()
            .ok_or_else(|| refused(at, field, format_args!("no step is called {named:?}")))?;
        match found as usize == at {
            true => Err(refused(at, field, format_args!("depends on itself: {named} → {named}"))),
            false => Ok(found),
        }
    };
    // The result of a fan-out is an array: what does not begin with a number is never found in it.
    let find_output = |field: &str, named: &str, path: &str| {
        let found = find(field, named)?;
        let within = path.strip_prefix("/output/").filter(|_| fanned_out.get(found as usize).copied().unwrap_or(false));
        match within.map(|rest| rest.split('/').next().unwrap_or_default()) {
            Some(first) if first.parse::<u32>().is_err() => Err(refused(
                at,
                field,
                format_args!("the output of {named} is an array, one member for each task: it has no {path:?}"),
            )),
            _ => Ok(found),
        }
    };
    let mut on = Vec::with_capacity(depends_on.len());
    for (number, named) in depends_on.iter().enumerate() {
        on.push(find(&format!("depends_on[{number}]"), named)?);
    }
    let mut reads = Vec::new();
    let holes =
        holes(&task.input, for_each.is_some()).map_err(|(place, why)| refused(at, &format!("input{place}"), why))?;
    for hole in &holes {
        if let With::Output(Reference { step, path, .. }) = &hole.with {
            reads.push(find_output("input", step, path)?);
        }
    }
    if let Some(when) = &when {
        let mut steps = Vec::new();
        when.steps(&mut steps);
        for (named, path) in steps {
            reads.push(find_output("when", named, path)?);
        }
    }
    if let Some(Over::Output { from, path }) = &for_each {
        reads.push(find_output("for_each", from, path)?);
    }
    reads.sort_unstable();
    reads.dedup();
    on.extend_from_slice(&reads);
    on.sort_unstable();
    on.dedup();
    let name = name.into();
    Ok(PlannedStep { name, task, after, when, for_each, holes, depends_on: on, dependents: Vec::new(), reads })
}

/// Every step after all that it depends on.
fn sorted(steps: &[PlannedStep]) -> Result<Vec<u32>, Invalid> {
    let mut waits: Vec<usize> = steps.iter().map(|step| step.depends_on.len()).collect();
    let mut order: Vec<u32> = (0..steps.len() as u32).filter(|step| waits.get(*step as usize) == Some(&0)).collect();
    let mut done = 0;
    while let Some(step) = order.get(done).and_then(|step| steps.get(*step as usize)) {
        done += 1;
        for &next in &step.dependents {
            if let Some(waits) = waits.get_mut(next as usize) {
                *waits -= 1;
                if *waits == 0 {
                    order.push(next);
                }
            }
        }
    }
    if order.len() == steps.len() { Ok(order) } else { Err(round(steps, &waits)) }
}

/// Names steps shown of a way round.
const SHOWN: usize = 10;

/// Of the steps that never come to run: one way round. Each of them waits for another, so that to follow these comes back.
fn round(steps: &[PlannedStep], waits: &[usize]) -> Invalid {
    let is_stuck = |step: &u32| waits.get(*step as usize).is_some_and(|waits| *waits > 0);
    let mut way: Vec<u32> = Vec::new();
    let mut seen = vec![usize::MAX; steps.len()];
    let mut here = (0..steps.len() as u32).find(|step| is_stuck(step)).unwrap_or_default();
    let from = loop {
        if let Some(place) = seen.get_mut(here as usize) {
            if *place != usize::MAX {
                break *place;
            }
            *place = way.len();
        }
        way.push(here);
        let next = steps.get(here as usize).and_then(|step| step.depends_on.iter().find(|step| is_stuck(step)));
        match next {
            Some(next) => here = *next,
            None => break 0,
        }
    };
    // Told as it would run: what comes first, first.
    let mut way: Vec<u32> = way.split_off(from);
    way.reverse();
    let least = way.iter().enumerate().min_by_key(|(_, step)| **step).map_or(0, |(at, _)| at);
    way.rotate_left(least);
    let name = |step: &u32| steps.get(*step as usize).map_or_else(String::new, |step| step.name.to_string());
    let mut names: Vec<String> = way.iter().take(SHOWN).map(name).collect();
    if way.len() > SHOWN {
        names.push(format!("… ({} more)", way.len() - SHOWN));
    }
    names.extend(way.first().map(name));
    let at = way.first().copied().unwrap_or_default() as usize;
    refused(at, "depends_on", format_args!("depends on itself: {}", names.join(" → ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::decode_workflow;
    use super::*;

    fn plan(body: serde_json::Value) -> Result<Plan, Invalid> {
        Plan::new(decode_workflow(body.to_string().as_bytes())?)
    }

    fn step(name: &str, more: serde_json::Value) -> serde_json::Value {
        let mut step = json!({"name": name, "model": "m", "input": {}});
        step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        step
    }

    #[test]
    fn a_reference_is_a_dependency() {
        let plan = plan(json!({"tasks": [
            step("d", json!({"input": [{"$from": "b"}, {"$from": "c", "path": "/output/x"}], "depends_on": ["b"]})),
            step("b", json!({"when": {"$from": "a", "exists": true}})),
            step("c", json!({"for_each": {"$from": "a", "path": "/output/rows"}, "input": {"$item": ""}, "depends_on": []})),
            step("a", json!({})),
        ]}));
        // An array has no member x.
        assert_eq!(plan.unwrap_err().field, "tasks[0].input");
        let plan = self::plan(json!({"tasks": [
            step("d", json!({"input": [{"$from": "b"}, {"$from": "c", "path": "/output/0/x"}], "depends_on": ["b"]})),
            step("b", json!({"when": {"$from": "a", "exists": true}})),
            step("c", json!({"for_each": {"$from": "a", "path": "/output/rows"}, "input": {"$item": ""}})),
            step("a", json!({})),
        ]}))
        .unwrap();
        let depends: Vec<Vec<u32>> = plan.steps.iter().map(|step| step.depends_on.clone()).collect();
        assert_eq!(depends, [vec![1, 2], vec![3], vec![3], vec![]]);
        assert_eq!(plan.steps[3].dependents, [1, 2]);
        assert_eq!(plan.order, [3, 1, 2, 0]);
        let seconds = [1.0, 5.0, 2.0, 1.0];
        assert_eq!(plan.remaining(|step| seconds[step as usize]), [0.0, 1.0, 1.0, 6.0]);
    }

    #[test]
    fn what_cannot_run_is_refused_with_its_place() {
        let many: Vec<_> = (0..=limits::STEPS).map(|n| step(&format!("s{n}"), json!({}))).collect();
        let edges: Vec<_> = (0..450)
            .map(|n| step(&format!("s{n}"), json!({"depends_on": (0..n).map(|n| format!("s{n}")).collect::<Vec<_>>()})))
            .collect();
        for (body, code, field, message) in [
            (json!([]), "shape", "body", "object"),
            (json!({}), "invalid_field", "tasks", "given"),
            (json!({"tasks": []}), "invalid_field", "tasks", "empty"),
            (json!({"tasks": {}}), "invalid_field", "tasks", "array"),
            (json!({"tasks": many}), "too_large", "tasks", "10000"),
            (json!({"tasks": edges}), "too_large", "tasks[447].depends_on", "100000"),
            (json!({"tasks": [1]}), "shape", "tasks[0]", "object"),
            (json!({"tasks": [{"model": "m", "input": 1}]}), "invalid_field", "tasks[0].name", "given"),
            (json!({"tasks": [step("a/b", json!({}))]}), "invalid_field", "tasks[0].name", "match"),
            (json!({"tasks": [{"name": "a", "model": "m"}]}), "invalid_field", "tasks[0].input", "given"),
            (json!({"tasks": [{"name": "a", "input": 1}]}), "invalid_field", "tasks[0].model", "exactly one"),
            (json!({"tasks": [step("a", json!({"priority": 10}))]}), "invalid_field", "tasks[0].priority", "0 to 9"),
            (json!({"tasks": [step("a", json!({"tenant": "x"}))]}), "invalid_field", "tasks[0].tenant", "workflow's"),
            (
                json!({"tasks": [step("a", json!({})), step("a", json!({}))]}),
                "invalid_field",
                "tasks[1].name",
                "tasks[0]",
            ),
            (
                json!({"tasks": [step("a", json!({"depends_on": ["b", "a"]})), step("b", json!({}))]}),
                "invalid_field",
                "tasks[0].depends_on[1]",
                "a → a",
            ),
            (
                json!({"tasks": [step("a", json!({"depends_on": ["b"]}))]}),
                "invalid_field",
                "tasks[0].depends_on[0]",
                "\"b\"",
            ),
            (
                json!({"tasks": [step("a", json!({"input": {"x": {"$from": "b"}}}))]}),
                "invalid_field",
                "tasks[0].input",
                "\"b\"",
            ),
            (
                json!({"tasks": [step("a", json!({"input": {"x": {"$item": ""}}}))]}),
                "invalid_field",
                "tasks[0].input.x",
                "for_each",
            ),
            (json!({"tasks": [step("a", json!({"when": {"eq": 1}}))]}), "invalid_field", "tasks[0].when", "comparison"),
            (
                json!({"tasks": [step("a", json!({"when": {"$from": "b", "eq": 1}}))]}),
                "invalid_field",
                "tasks[0].when",
                "\"b\"",
            ),
            (json!({"tasks": [step("a", json!({"for_each": 7}))]}), "invalid_field", "tasks[0].for_each", "array"),
            (
                json!({"tasks": [step("a", json!({"after": "later"}))]}),
                "invalid_field",
                "tasks[0].after",
                "all_succeeded",
            ),
            (
                json!({"tasks": [step("a", json!({}))], "on_failure": "stop"}),
                "invalid_field",
                "on_failure",
                "fail_fast",
            ),
            (json!({"tasks": [step("a", json!({}))], "deadline_ms": 0}), "invalid_field", "deadline_ms", "from 1"),
            (
                json!({"tasks": [
                    step("x", json!({})),
                    step("a", json!({"depends_on": ["c", "x"]})),
                    step("b", json!({"input": {"$from": "a"}})),
                    step("c", json!({"depends_on": ["b"]})),
                    step("d", json!({"depends_on": ["c"]})),
                ]}),
                "invalid_field",
                "tasks[1].depends_on",
                "a → b → c → a",
            ),
        ] {
            let shown: String = body.to_string().chars().take(200).collect();
            let invalid = plan(body).expect_err(&shown);
            assert_eq!((invalid.code, &*invalid.field), (code, field), "{shown}: {invalid}");
            assert!(invalid.message.contains(message), "{shown}: {invalid}");
        }
    }

    #[test]
    fn ten_thousand_steps_are_planned_whatever_their_shape() {
        let chain = (0..limits::STEPS).map(|n| match n {
            0 => step("s0", json!({})),
            n => step(&format!("s{n}"), json!({"input": {"$from": format!("s{}", n - 1)}})),
        });
        let plan = plan(json!({"tasks": chain.rev().collect::<Vec<_>>()})).unwrap();
        assert_eq!(plan.remaining(|_| 1.0)[limits::STEPS - 1], (limits::STEPS - 1) as f64);
        let ring = (0..limits::STEPS)
            .map(|n| step(&format!("s{n}"), json!({"depends_on": [format!("s{}", (n + 1) % limits::STEPS)]})));
        let invalid = self::plan(json!({"tasks": ring.collect::<Vec<_>>()})).unwrap_err();
        assert!(invalid.message.len() < 300 && invalid.message.contains("more"), "{invalid}");
    }
}
