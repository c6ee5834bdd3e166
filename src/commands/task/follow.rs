//! `--follow`: what a task says while it runs, as it comes, until its result.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use taskyard_shared::TaskResult;
use taskyard_shared::process::exit::Exit;
use taskyard_shared::progress::Progress;

use super::{judge, print, until_finished, word};
use crate::client::{Api, Failure};
use crate::commands::{ClientArgs, say};
use crate::output::{Format, visible_lines};

/// Before a stream that broke off is opened again, and how often in a row that is tried.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
const TRIES: u32 = 20;
/// Longest event.
const EVENT_BYTES: usize = 16 << 20;

/// One event of the stream.
#[derive(Default, Debug, PartialEq)]
struct Event {
    name: String,
    id: String,
    data: String,
}

#[derive(Deserialize)]
struct Partial {
    partial: Box<RawValue>,
}

pub(super) async fn follow(client: &ClientArgs, api: &Api, id: uuid::Uuid, until: Instant) -> Result<Exit, Failure> {
    let out = io::stdout();
    let is_terminal = out.is_terminal();
    let mut shown =
        Shown { format: client.output, out: Box::new(out), is_terminal, last: None, is_in_line: false, result: None };
    let reading = read(api, id, &mut shown);
    let ended = tokio::time::timeout_at(until.into(), reading).await;
    shown.end_line();
    match ended {
        Ok(ended) => ended?,
        Err(_) => {
            let task = until_finished(api, id, Instant::now()).await?;
            return Ok(judge(&[task]));
        }
    }
    // Without a result the last event was seen before: it is looked up.
    let task = match shown.result.take() {
        Some(task) => task,
        None => until_finished(api, id, until).await?,
    };
    if client.output == Format::Table {
        print(client, 1, std::slice::from_ref(&task))?;
    }
    Ok(judge(&[task]))
}

/// Reads until the result, coming back where it was when the stream breaks off.
async fn read(api: &Api, id: uuid::Uuid, shown: &mut Shown) -> Result<(), Failure> {
    let path = format!("v1/tasks/{id}/events");
    let mut tries = 0;
    loop {
        let response = match api.events(&path, shown.last.as_deref()).await {
            Ok(response) if response.status().as_u16() == 204 => return Ok(()),
            Ok(response) => response,
            Err(failure) if failure.exit == Exit::NotReachable && shown.last.is_some() && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(AGAIN_AFTER).await;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        let (mut bytes, mut buffer) = (response.bytes_stream(), Vec::new());
        while let Some(Ok(chunk)) = bytes.next().await {
            buffer.extend_from_slice(&chunk);
            while let Some(event) = next_event(&mut buffer) {
                tries = 0;
                if shown.show(&event)? {
                    return Ok(());
                }
            }
            if buffer.len() > EVENT_BYTES {
                return Err(Failure::new(Exit::Failed, "the API sends an event without an end"));
            }
        }
        tries += 1;
        if tries > TRIES {
            return Err(Failure::new(Exit::NotReachable, "the stream of events breaks off again and again"));
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// Takes the first whole event out of what has come.
fn next_event(buffer: &mut Vec<u8>) -> Option<Event> {
    let end = buffer.windows(2).position(|pair| pair == b"\n\n")?;
    let text: Vec<u8> = buffer.drain(..end + 2).collect();
    let mut event = Event::default();
    let mut lines = Vec::new();
    for line in String::from_utf8_lossy(&text).lines() {
        match line.split_once(':') {
            Some(("event", value)) => event.name = value.trim_start().to_owned(),
            Some(("id", value)) => event.id = value.trim_start().to_owned(),
            Some(("data", value)) => lines.push(value.strip_prefix(' ').unwrap_or(value).to_owned()),
            _ => {}
        }
    }
    event.data = lines.join("\n");
    Some(event)
}

/// What was shown so far.
struct Shown {
    format: Format,
    out: Box<dyn Write + Send>,
    is_terminal: bool,
    /// The last event's id.
    last: Option<String>,
    /// Text without a line break at its end stands on stdout.
    is_in_line: bool,
    result: Option<TaskResult>,
}

impl Shown {
    /// Whether it was the last.
    fn show(&mut self, event: &Event) -> Result<bool, Failure> {
        if event.name.is_empty() {
            return Ok(false);
        }
        self.last = Some(event.id.clone());
        let bad = |error| Failure::new(Exit::Failed, format!("an event is not understood: {error}"));
        if self.format != Format::Table {
            let data: &RawValue = serde_json::from_str(&event.data).map_err(bad)?;
            let line = serde_json::json!({"event": event.name, "id": event.id, "data": data});
            self.write(&if self.is_terminal { visible_json(&line.to_string()) } else { line.to_string() });
            self.write("\n");
        }
        match event.name.as_str() {
            "result" => {
                self.result = Some(serde_json::from_str(&event.data).map_err(bad)?);
                return Ok(true);
            }
            _ if self.format != Format::Table => {}
            "state" => {
                let task: TaskResult = serde_json::from_str(&event.data).map_err(bad)?;
                self.end_line();
                say(&match task.attempt {
                    0 | 1 => word(task.state),
                    attempt => format!("{}, attempt {attempt}", word(task.state)),
                });
            }
            "progress" => {
                let Progress { progress, message, .. } = serde_json::from_str(&event.data).map_err(bad)?;
                self.end_line();
                let message = message.map(|message| format!(" {message}")).unwrap_or_default();
                say(&format!("{:.0} %{message}", progress * 100.0));
            }
            "partial" => {
                let Partial { partial } = serde_json::from_str(&event.data).map_err(bad)?;
                match serde_json::from_str::<String>(partial.get()) {
                    // Text, as language models give it: it is put together.
                    Ok(text) if self.is_terminal => self.write(&visible_lines(&text)),
                    Ok(text) => self.write(&text),
                    Err(_) => {
                        self.end_line();
                        self.write(&if self.is_terminal {
                            visible_json(partial.get())
                        } else {
                            partial.get().to_owned()
                        });
                        self.write("\n");
                    }
                }
            }
            "truncated" => {
                self.end_line();
                say("more of its output is not kept; the result has all of it");
            }
            _ => {}
        }
        Ok(false)
    }

    fn write(&mut self, text: &str) {
        // Whoever closed the pipe does not want it.
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        if !text.is_empty() {
            self.is_in_line = !text.ends_with('\n');
        }
    }

    fn end_line(&mut self) {
        if self.is_in_line {
            self.write("\n");
        }
    }
}

/// JSON that does not steer the terminal, and is the same JSON: JSON itself lets some characters of control be, within strings.
fn visible_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\t' | '\n' | '\r' => out.push(' '),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, PoisonError};

    use super::*;

    /// What was written.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_model_says_does_not_steer_a_terminal_and_comes_through_a_pipe_as_it_is() {
        let partials =
            [r#"{"partial": "a\tb\n\u001b[2J"}"#, "{\"partial\": \"\u{9b}31m\\rc\"}", "{\"partial\": [\"\u{9b}\"]}"];
        let shown = |is_terminal: bool, format: Format| {
            let written = Written::default();
            let out = Box::new(written.clone());
            let mut shown = Shown { format, out, is_terminal, last: None, is_in_line: false, result: None };
            for data in partials {
                shown.show(&Event { name: "partial".into(), id: "1".into(), data: data.into() }).unwrap();
            }
            let bytes = written.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(shown(true, Format::Table), "a\tb\n\\u{1b}[2J\\u{9b}31m\\rc\n[\"\\u009b\"]\n");
        assert_eq!(shown(false, Format::Table), "a\tb\n\u{1b}[2J\u{9b}31m\rc\n[\"\u{9b}\"]\n");
        let (terminal, pipe) = (shown(true, Format::Jsonl), shown(false, Format::Jsonl));
        assert!(!terminal.chars().any(|c| c.is_control() && c != '\n') && pipe.contains('\u{9b}'), "{terminal}{pipe}");
        let values = |text: &str| -> Vec<serde_json::Value> {
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        assert_eq!(values(&terminal), values(&pipe));
    }

    #[test]
    fn events_are_taken_out_of_what_comes_in_any_pieces() {
        let text = "event: partial\nid: 1.1.running\ndata: {\"a\":\ndata: 1}\n\n: still here\n\nevent: result\nid: 2\ndata: 7\n\n";
        for piece in [1, 2, 7, 1000] {
            let (mut buffer, mut found) = (Vec::new(), Vec::new());
            for chunk in text.as_bytes().chunks(piece) {
                buffer.extend_from_slice(chunk);
                found.extend(std::iter::from_fn(|| next_event(&mut buffer)));
            }
            assert_eq!(found.len(), 3, "in pieces of {piece}");
            assert_eq!((found[0].name.as_str(), found[0].data.as_str()), ("partial", "{\"a\":\n1}"));
            assert_eq!(found[1], Event::default());
            assert_eq!((found[2].id.as_str(), found[2].data.as_str()), ("2", "7"));
        }
    }
}
