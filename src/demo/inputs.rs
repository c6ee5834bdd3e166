//! The tasks of the demonstration: real texts and files with known answers, from the folder `demo/`.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use taskyard_shared::{Kind, Priority};

use crate::failure::Failure;

/// One task with the answer that it must get.
pub struct Item {
    pub model: &'static str,
    pub kind: Kind,
    pub tenant: &'static str,
    pub priority: Priority,
    pub input: serde_json::Value,
    /// What a person reads of it.
    pub shown: String,
    pub expected: String,
}

#[derive(Deserialize)]
struct Line {
    text: Option<String>,
    file: Option<String>,
    expected: String,
}

/// The folder that holds `models` and `demo`: the working directory, or one above the program.
pub fn find_root() -> Result<PathBuf, Failure> {
    let mut places: Vec<PathBuf> = std::env::current_dir().into_iter().collect();
    if let Ok(program) = std::env::current_exe() {
        places.extend(program.ancestors().skip(1).map(Path::to_path_buf));
    }
    places.into_iter().find(|place| place.join("models/minilm/model.onnx").is_file() && place.join("demo").is_dir()).ok_or_else(
        || {
            Failure::NotFound(
                "the folders models and demo are in neither the working directory nor one above this program: run it in \
                 the project's folder"
                    .to_owned(),
            )
        },
    )
}

/// All items, in an order that mixes models, priorities and tenants and is always the same.
pub fn load(root: &Path) -> Result<Vec<Item>, Failure> {
    let demo = root.join("demo");
    let mut items = Vec::new();
    for (file, model, kind) in [
        ("intents.jsonl", "intents", Kind::Prediction),
        ("sentiment.jsonl", "sentiment", Kind::Prediction),
        ("files.jsonl", "file-type", Kind::DataProcessing),
    ] {
        let path = demo.join(file);
        let text = read_text(&path)?;
        for (number, line) in text.lines().enumerate() {
            let line: Line = serde_json::from_str(line)
                .map_err(|failure| Failure::Usage(format!("{}, line {}: {failure}", path.display(), number + 1)))?;
            let (input, shown) = match (line.text, line.file) {
                (Some(text), _) => (serde_json::json!({"text": text}), text),
                (None, Some(file)) => {
                    let path = demo.join(&file);
                    let bytes = std::fs::read(&path)
                        .map_err(|failure| Failure::Usage(format!("{}: {failure}", path.display())))?;
                    (serde_json::json!({"base64": base64(&bytes)}), file)
                }
                (None, None) => {
                    let message = format!("{}, line {}: neither text nor file", path.display(), number + 1);
                    return Err(Failure::Usage(message));
                }
            };
            items.push(Item {
                model,
                kind,
                tenant: "",
                priority: Priority::default(),
                input,
                shown,
                expected: line.expected,
            });
        }
    }
    mix(&mut items);
    Ok(items)
}

/// Shuffles with a fixed seed, then gives out priorities and tenants: few are urgent, most are not.
fn mix(items: &mut [Item]) {
    let mut state = 0x5eed_u64;
    let mut next = |below: usize| {
        // SplitMix64, so that the demonstration is the same on every machine.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % below as u64) as usize
    };
    for at in (1..items.len()).rev() {
        items.swap(at, next(at + 1));
    }
    for item in items {
        let priority = [1, 1, 1, 1, 1, 4, 4, 4, 9, 9][next(10)];
        item.priority = Priority::try_from(priority).unwrap_or_default();
        item.tenant = ["bank", "broker", "archive"][next(3)];
    }
}

fn read_text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|failure| Failure::Usage(format!("{}: {failure}", path.display())))
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
