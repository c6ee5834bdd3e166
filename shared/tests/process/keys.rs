//! Keys in the settings, and where the gateway may listen without any.

use taskyard_shared::process::keys::{Keys, NewKey};
use taskyard_shared::process::settings::KeySettings;
use tempfile::TempDir;

use crate::config::load;

const SHA256: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn refusal(toml: &str) -> String {
    load(&TempDir::new().unwrap(), toml, &[]).unwrap_err().to_string()
}

#[test]
fn a_key_is_read_from_file_and_environment() {
    let folder = TempDir::new().unwrap();
    let key = NewKey::generate().unwrap();
    std::fs::write(folder.path().join("hash"), key.sha256() + "\n").unwrap();
    let toml = "[keys.team-blue]\nsha256_file = 'hash'\ntenant = 'blue'\nscopes = ['read']\n";
    let loaded = load(&folder, toml, &[("TASKYARD__KEYS__TEAM_BLUE__SCOPES", "['read', 'submit']")]).unwrap();
    assert_eq!(loaded.settings.keys["team-blue"].scopes, ["read", "submit"]);
    let keys = Keys::new(&loaded.settings.keys).unwrap();
    assert_eq!(&*keys.open(key.text(), taskyard_shared::Timestamp::now()).unwrap().name, "team-blue");
}

#[test]
fn what_is_no_key_is_refused_by_its_place() {
    let with = |fields: &str| format!("[keys.k]\n{fields}\n");
    let good = format!("sha256 = '{SHA256}'\ntenant = 'blue'\n");
    let key = NewKey::generate().unwrap();
    for (toml, sentence) in [
        (with("tenant = 'blue'\nscopes = ['read']"), "keys.k.sha256 must be given"),
        (with(&good), "keys.k.scopes must be given"),
        (with(&format!("{good}scopes = []")), "keys.k.scopes must hold at least one"),
        (with(&format!("{good}scopes = ['red']")), "keys.k.scopes holds what is none"),
        (with(&format!("{good}scopes = ['admin']")), "keys.k.scopes holds admin, which is for tenant \"*\" only"),
        (with(&format!("{good}scopes = ['read']\nexpires = 'soon'")), "keys.k.expires must be a time"),
        (with(&format!("{good}scopes = ['read']\nscope = 'x'")), "did you mean keys.k.scopes?"),
        (with(&format!("sha256 = '{}'\ntenant = '*'\nscopes = ['read']", key.text())), "keys.k.sha256 must be the 64"),
        (format!("[keys.K]\n{good}scopes = ['read']"), "keys.K is not a key's name"),
        (
            format!("[keys.a]\n{good}scopes = ['read']\n[keys.b]\n{good}scopes = ['read']"),
            "keys.b.sha256 is that of another key, too",
        ),
    ] {
        let refused = refusal(&toml);
        assert!(refused.contains(sentence), "{refused}");
        assert!(!refused.contains(key.text()), "the key is shown: {refused}");
    }
}

#[test]
fn the_reference_of_keys_names_every_setting() {
    let reference: toml::Table = include_str!("../../src/process/settings.keys.toml").parse().unwrap();
    let written = reference["keys"]["NAME"].clone();
    let key: KeySettings = written.clone().try_into().unwrap();
    assert_eq!(toml::Value::try_from(&key).unwrap(), written, "a key is missing in the reference");
    assert!(Keys::new(&[("name".to_owned(), key)].into()).is_ok());
}

#[test]
fn beyond_this_machine_the_gateway_wants_keys_or_a_decision() {
    let folder = TempDir::new().unwrap();
    let one = format!("[keys.k]\nsha256 = '{SHA256}'\ntenant = '*'\nscopes = ['read']\n");
    for (listen, toml, allowed) in [
        ("127.0.0.1:0", "", true),
        ("127.8.8.8:0", "", true),
        ("[::1]:0", "", true),
        ("[::ffff:127.0.0.1]:0", "", true),
        ("0.0.0.0:0", "", false),
        ("[::]:0", "", false),
        ("10.0.0.1:0", "", false),
        ("[::ffff:10.0.0.1]:0", "", false),
        ("0.0.0.0:0", one.as_str(), true),
        ("0.0.0.0:0", "gateway.anonymous = 'anywhere'", true),
    ] {
        let loaded = load(&folder, toml, &[("TASKYARD__GATEWAY__LISTEN", listen)]).unwrap();
        let required = loaded.settings.require_keys();
        assert_eq!(required.is_ok(), allowed, "{listen} {toml}");
        if let Err(refused) = required {
            let refused = refused.to_string();
            for word in [listen, "taskyard keys new", "127.0.0.1", "gateway.anonymous"] {
                assert!(refused.contains(word), "{refused}");
            }
        }
    }
}
