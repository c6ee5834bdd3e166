//! Settings, from a file and from the environment.
//!
//! An input is the text of the file. Behind a zero byte come lines of the environment, `NAME=value`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use taskyard_shared::process::config::load_from;

/// What may stand where a secret is.
const SECRET: &str = "s3cret-word";

/// They are refused with one sentence, or can be shown. Neither shows a password.
pub fn check(bytes: &[u8]) {
    let (text, variables) = match bytes.iter().position(|byte| *byte == 0) {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[][..]),
    };
    // A path could lead anywhere, to what waits for ever.
    let names_files = |bytes: &[u8]| bytes.to_ascii_lowercase().windows(5).any(|window| window == b"_file");
    if names_files(text) || names_files(variables) {
        return;
    }
    let path = std::env::temp_dir().join(format!("taskyard-fuzz-{}.toml", std::process::id()));
    std::fs::write(&path, text).expect("a file can be written");
    let environment = variables.split(|byte| *byte == b'\n').filter_map(|line| {
        let at = line.iter().position(|byte| *byte == b'=')?;
        Some((OsString::from_vec(line[..at].to_vec()), OsString::from_vec(line[at + 1..].to_vec())))
    });
    let is_key = |setting: &str| !setting.contains(SECRET);
    let read = load_from(Some(&path), environment);
    std::fs::remove_file(&path).expect("the file is there");
    match read {
        Ok(loaded) => {
            for setting in loaded.show() {
                if is_key(&setting.key) && (setting.key.ends_with("secret") || setting.key.contains(".headers.")) {
                    assert!(!setting.value.to_string().contains(SECRET), "{setting:?}");
                }
            }
            let _ = loaded.settings.require_shared("worker");
            let _ = loaded.settings.require_keys();
            let shown = format!("{:?}", loaded.settings.broker);
            assert!(!shown.contains(SECRET) || !loaded.settings.broker.url.contains(&format!(":{SECRET}@")), "{shown}");
        }
        Err(refused) => {
            let sentence = refused.to_string();
            assert!(!sentence.is_empty() && !sentence.chars().any(char::is_control), "{sentence:?}");
        }
    }
}
