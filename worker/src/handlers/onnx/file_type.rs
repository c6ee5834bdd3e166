//! What kind of file some bytes are: the Magika model, with the features and rules of its Python package.
//!
//! The answers are those of `Magika().identify_bytes()` in its default mode (high confidence): the same bytes
//! from both ends, the same rules for empty and tiny files, the same thresholds and overwrites. What differs:
//!
//! - Scores, as the arithmetic is another runtime's: by about 4e-6 for most files, but by more the smaller the
//!   file, up to 0.16 at eight bytes. A small file is nearly all padding, and the model's first layer then
//!   takes a difference of two nearly equal sums (its variance), of which few digits are left. In such cases
//!   the scores here are the ones near to those of exact arithmetic. Labels did not differ in 1,000 files.
//! - There are no `symlink` and `directory`, as there is no path, only bytes.
//! - Whether a label stands for text is a list here ([`TEXT_LABELS`]), not a file.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rten_tensor::NdTensor;
use serde::Deserialize;

use super::error::OnnxError;
use super::session::Session;

/// Most files in one run: this bounds memory, more would not be faster.
pub(super) const MAX_FILES_PER_RUN: usize = 8;

const INPUT: &str = "bytes";
const OUTPUT: &str = "target_label";

const EMPTY: &str = "empty";
const TEXT: &str = "txt";
const UNKNOWN: &str = "unknown";

/// Tells file types from content. Share it behind one `Arc`.
#[derive(Debug)]
pub struct FileTypeClassifier {
    session: Arc<Session>,
    input: rten::NodeId,
    output: rten::NodeId,
    config: Config,
}

/// What a file was taken for.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The answer: a label of the model, or `empty`, `txt` or `unknown` by rule.
    pub label: String,
    /// How sure the model was of its own label; 1 if it was not asked.
    pub score: f32,
    /// What the model said, before thresholds and overwrites; nothing if the file was too small to ask it.
    pub model_label: Option<String>,
}

/// The model's `config.min.json`.
#[derive(Debug, Deserialize)]
struct Config {
    beg_size: usize,
    mid_size: usize,
    end_size: usize,
    use_inputs_at_offsets: bool,
    medium_confidence_threshold: f32,
    min_file_size_for_dl: usize,
    padding_token: i32,
    block_size: usize,
    target_labels_space: Vec<String>,
    thresholds: HashMap<String, f32>,
    overwrite_map: HashMap<String, String>,
}

impl FileTypeClassifier {
    /// Loads the model and its configuration, which must fit each other.
    pub fn load(model: &Path, config: &Path) -> Result<Self, OnnxError> {
        Self::new(config, || Session::load(model, None).map(Arc::new))
    }

    /// The same on a model from elsewhere, which is not asked for when the configuration is bad.
    pub(super) fn new(
        config: &Path,
        session: impl FnOnce() -> Result<Arc<Session>, OnnxError>,
    ) -> Result<Self, OnnxError> {
        let text = std::fs::read(config).map_err(|source| OnnxError::from_io(config, source))?;
        let parsed: Config = serde_json::from_slice(&text)
            .map_err(|error| OnnxError::invalid_file(config, format!("not a valid configuration: {error}")))?;
        parsed.check().map_err(|reason| OnnxError::invalid_file(config, reason))?;

        let session = session()?;
        let input = session.integer_input(INPUT)?;
        let output = session.output(OUTPUT)?;
        for (name, id, size) in [(INPUT, input, parsed.features()), (OUTPUT, output, parsed.target_labels_space.len())]
        {
            if session.last_dimension(id).is_some_and(|found| found != size) {
                let reason = format!("{name} is not {size} wide, as {} says", config.display());
                return Err(OnnxError::wrong_shape(session.path(), reason));
            }
        }
        Ok(Self { session, input, output, config: parsed })
    }

    /// The model's own labels.
    pub fn labels(&self) -> &[String] {
        &self.config.target_labels_space
    }

    /// One prediction per file, in the order of the files. Of a long file only both ends are looked at.
    pub fn classify(&self, files: &[&[u8]]) -> Result<Vec<Prediction>, OnnxError> {
        let mut predictions = vec![None; files.len()];
        let mut asked = Vec::new();
        for (index, file) in files.iter().enumerate() {
            match self.config.extract(file) {
                Extracted::Features(features) => asked.push((index, features)),
                Extracted::TooSmall(label) => {
                    predictions[index] = Some(Prediction { label: label.to_owned(), score: 1.0, model_label: None });
                }
            }
        }
        for batch in asked.chunks(MAX_FILES_PER_RUN) {
            for ((index, _), prediction) in batch.iter().zip(self.run(batch)?) {
                predictions[*index] = Some(prediction);
            }
        }
        // Every place has been filled: a file is either too small or was asked about.
        Ok(predictions.into_iter().flatten().collect())
    }

    fn run(&self, batch: &[(usize, Vec<i32>)]) -> Result<Vec<Prediction>, OnnxError> {
        let labels = self.config.target_labels_space.len();
        let bytes: Vec<i32> = batch.iter().flat_map(|(_, features)| features.iter().copied()).collect();
        let input = NdTensor::from_data([batch.len(), self.config.features()], bytes);
        let value = self.session.run(vec![(self.input, input.into())], self.output)?;
        let (shape, scores) = value
            .into_shape_vec::<f32, 2>()
            .map_err(|error| OnnxError::wrong_shape(self.session.path(), format!("output {OUTPUT}: {error}")))?;
        if shape != [batch.len(), labels] {
            let reason = format!("output {OUTPUT} has the shape {shape:?} instead of {:?}", [batch.len(), labels]);
            return Err(OnnxError::wrong_shape(self.session.path(), reason));
        }
        if scores.iter().any(|score| !score.is_finite()) {
            return Err(OnnxError::run_failed(self.session.path(), "the scores are not finite"));
        }
        Ok(scores.chunks_exact(labels).map(|row| self.config.judge(row)).collect())
    }
}

enum Extracted {
    Features(Vec<i32>),
    TooSmall(&'static str),
}

impl Config {
    fn check(&self) -> Result<(), String> {
        let sizes = [self.beg_size, self.end_size];
        if self.mid_size != 0 || self.use_inputs_at_offsets {
            return Err("bytes from the middle of a file are not supported".to_owned());
        }
        if sizes.iter().any(|size| *size >= self.block_size) {
            return Err("beg_size and end_size must be less than block_size".to_owned());
        }
        if self.min_file_size_for_dl == 0 || self.min_file_size_for_dl > self.beg_size {
            return Err("min_file_size_for_dl must be between 1 and beg_size".to_owned());
        }
        if self.target_labels_space.is_empty() {
            return Err("target_labels_space is empty".to_owned());
        }
        Ok(())
    }

    /// How many numbers the model takes of a file.
    fn features(&self) -> usize {
        self.beg_size + self.end_size
    }

    /// The first bytes after white space at the start and the last before white space at the end, each
    /// within one block and filled up with the padding token.
    fn extract(&self, file: &[u8]) -> Extracted {
        if file.is_empty() {
            return Extracted::TooSmall(EMPTY);
        }
        let block = self.block_size.min(file.len());
        let (head, tail) = (&file[..block], &file[file.len() - block..]);
        let beginning = trim_start(head);
        if file.len() < self.min_file_size_for_dl || beginning.len() < self.min_file_size_for_dl {
            return Extracted::TooSmall(if std::str::from_utf8(head).is_ok() { TEXT } else { UNKNOWN });
        }
        let beginning = &beginning[..self.beg_size.min(beginning.len())];
        let end = trim_end(tail);
        let end = &end[end.len() - self.end_size.min(end.len())..];

        let mut features = Vec::with_capacity(self.features());
        features.extend(beginning.iter().map(|byte| i32::from(*byte)));
        features.resize(self.features() - end.len(), self.padding_token);
        features.extend(end.iter().map(|byte| i32::from(*byte)));
        Extracted::Features(features)
    }

    /// The likeliest label, if the model was sure enough of it; else what is safe to say.
    fn judge(&self, scores: &[f32]) -> Prediction {
        let (best, score) =
            scores.iter().copied().enumerate().fold((0, f32::NEG_INFINITY), |best, (index, score)| {
                if score > best.1 { (index, score) } else { best }
            });
        let model_label = &self.target_labels_space[best];
        let label = self.overwrite_map.get(model_label).unwrap_or(model_label);
        let threshold = self.thresholds.get(model_label).unwrap_or(&self.medium_confidence_threshold);
        let label = if score >= *threshold {
            label
        } else if TEXT_LABELS.contains(&label.as_str()) {
            TEXT
        } else {
            UNKNOWN
        };
        Prediction { label: label.to_owned(), score, model_label: Some(model_label.clone()) }
    }
}

/// White space as Python's `bytes.strip` has it: with the vertical tab, which `is_ascii_whitespace` leaves out.
fn is_white_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

fn trim_start(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|byte| !is_white_space(*byte)).unwrap_or(bytes.len());
    &bytes[start..]
}

fn trim_end(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| !is_white_space(*byte)).map_or(0, |last| last + 1);
    &bytes[..end]
}

/// The labels that stand for text, from `content_types_kb.min.json` of the same package (magika 1.0.3). An
/// unsure answer becomes `txt` for these and `unknown` for the others.
#[rustfmt::skip]
const TEXT_LABELS: &[&str] = &[
    "aidl", "appleplist", "asm", "asp", "autohotkey", "autoit", "awk", "batch", "bazel", "bib", "c", "clojure",
    "cmake", "cobol", "coffeescript", "cpp", "cs", "csproj", "css", "csv", "dart", "diff", "dm", "dockerfile",
    "dxf", "elixir", "eml", "erb", "erlang", "fortran", "gemfile", "gemspec", "gitattributes", "gitmodules", "go",
    "gradle", "groovy", "handlebars", "haskell", "hcl", "htaccess", "html", "ics", "ignorefile", "ini",
    "internetshortcut", "ipynb", "java", "javascript", "jinja", "json", "jsonl", "julia", "kotlin", "latex",
    "lisp", "lua", "m3u", "m4", "makefile", "markdown", "matlab", "mht", "mum", "objectivec", "ocaml", "pascal",
    "pem", "perl", "php", "po", "powershell", "prolog", "proteindb", "proto", "python", "r", "randomtxt", "rdf",
    "rst", "rtf", "ruby", "rust", "scala", "scss", "sgml", "shell", "smali", "solidity", "sql", "srt", "stltext",
    "sum", "svg", "swift", "tcl", "textproto", "toml", "tsv", "twig", "txt", "typescript", "vba", "vcxproj",
    "verilog", "vhdl", "vtt", "vue", "winregistry", "xml", "yaml", "yara", "zig",
];

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[derive(Deserialize)]
    struct Known {
        file: String,
        expected: String,
        score: f32,
    }

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    fn classifier() -> FileTypeClassifier {
        let folder = root().join("models/magika");
        FileTypeClassifier::load(&folder.join("model.onnx"), &folder.join("config.min.json")).unwrap()
    }

    #[test]
    fn file_types_are_those_of_the_reference_runtime() {
        let demo = root().join("demo");
        let lines = std::fs::read_to_string(demo.join("files.jsonl")).unwrap();
        let known: Vec<Known> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(known.len() >= 20);
        let contents: Vec<Vec<u8>> = known.iter().map(|item| std::fs::read(demo.join(&item.file)).unwrap()).collect();
        let contents: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
        let predictions = classifier().classify(&contents).unwrap();
        assert_eq!(predictions.len(), known.len());
        for (item, found) in known.iter().zip(&predictions) {
            assert_eq!(found.label, item.expected, "{}", item.file);
            assert!((found.score - item.score).abs() < 1e-3, "{}: {found:?} instead of {}", item.file, item.score);
        }
    }

    #[test]
    fn small_files_are_judged_by_rule_and_keep_their_place() {
        let spaces = [b' '; 5000];
        let mut cut_character = vec![b'\n'; 4095];
        cut_character.extend("é and more".as_bytes());
        let source = b"fn main() {\n    println!(\"{}\", 1 + 1);\n}\n".repeat(4);
        let files: [&[u8]; 7] =
            [b"", b"short", b"\xff\xfe", &spaces, &source, b"\x0b\x0c  \r\n\tseven..", &cut_character];
        let found = classifier().classify(&files).unwrap();
        let labels: Vec<&str> = found.iter().map(|prediction| prediction.label.as_str()).collect();
        assert_eq!(labels, ["empty", "txt", "unknown", "txt", "rust", "txt", "unknown"]);
        assert!(found.iter().enumerate().all(|(index, one)| one.model_label.is_some() == (index == 4)));
    }

    #[test]
    fn features_are_stripped_and_padded_at_both_ends() {
        let classifier = classifier();
        let Extracted::Features(features) = classifier.config.extract(b" \x0b0123456789\n\n") else {
            panic!("long enough to ask the model");
        };
        // White space goes at the start of the first half and at the end of the second, nowhere else.
        let expected = |bytes: &[u8]| bytes.iter().map(|byte| i32::from(*byte)).collect::<Vec<_>>();
        assert_eq!(features.len(), 2048);
        assert_eq!(features[..12], expected(b"0123456789\n\n"));
        assert!(features[12..2036].iter().all(|token| *token == 256));
        assert_eq!(features[2036..], expected(b" \x0b0123456789"));
    }

    #[test]
    fn broken_files_are_named_and_told_apart() {
        let folder = root().join("models/magika");
        let (model, config) = (folder.join("model.onnx"), folder.join("config.min.json"));
        let load = |model: &Path, config: &Path| FileTypeClassifier::load(model, config).unwrap_err();
        assert!(matches!(load(Path::new("gone.onnx"), &config), OnnxError::FileMissing { .. }));
        assert!(matches!(load(&model, Path::new("gone.json")), OnnxError::FileMissing { .. }));
        assert!(matches!(load(&config, &config), OnnxError::InvalidFile { .. }));
        assert!(matches!(load(&model, &model), OnnxError::InvalidFile { .. }));
        let other = root().join("models/minilm/model.onnx");
        assert!(matches!(load(&other, &config), OnnxError::WrongShape { .. }));
    }
}
