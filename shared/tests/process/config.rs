//! Settings: three layers, each leaf with the one that set it, and nothing secret in what is shown.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use taskyard_shared::process::config::{ConfigError, Loaded, Origin, load_from};
use taskyard_shared::process::settings::{ModelSettings, QueueType, Settings};
use tempfile::TempDir;

pub fn environment(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    variables.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

/// Loads `toml` as the configuration file, and `variables` as the environment.
pub fn load(folder: &TempDir, toml: &str, variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let path = folder.path().join("taskyard.toml");
    std::fs::write(&path, toml).unwrap();
    load_from(Some(&path), environment(variables))
}

fn from_environment(variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    load_from(None, environment(variables))
}

#[test]
fn without_file_and_environment_the_defaults_hold() {
    let loaded = from_environment(&[("PATH", "/bin"), ("TASKYARD_TEST_AMQP", "amqp://elsewhere")]).unwrap();
    assert_eq!(toml::Table::try_from(&loaded.settings), toml::Table::try_from(Settings::default()));
    assert_eq!(loaded.settings.broker.url, "embedded:");
    assert!(loaded.origins.values().all(|origin| *origin == Origin::Default));
    assert_eq!(loaded.base_dir, std::env::current_dir().unwrap());
}

#[test]
fn a_later_layer_wins_leaf_by_leaf_and_every_leaf_says_where_it_is_from() {
    let folder = TempDir::new().unwrap();
    let toml = "[broker]\nnamespace = \"from-file\"\nheartbeat_s = 20\n[scheduler]\nageing_s = 3\n";
    let loaded = load(&folder, toml, &[("TASKYARD__BROKER__HEARTBEAT_S", "30")]).unwrap();
    assert_eq!(loaded.settings.broker.namespace, "from-file");
    assert_eq!(loaded.settings.broker.heartbeat_s, 30);
    assert_eq!(loaded.settings.broker.queue_type, QueueType::Auto);
    assert_eq!(loaded.settings.scheduler.ageing_s, 3.0);
    let path = folder.path().join("taskyard.toml");
    assert_eq!(loaded.origin("broker.namespace"), Origin::File { path: path.clone(), line: 2 });
    assert_eq!(loaded.origin("broker.namespace").to_string(), format!("file:{}", path.display()));
    assert_eq!(loaded.origin("broker.heartbeat_s").to_string(), "environment:TASKYARD__BROKER__HEARTBEAT_S");
    assert_eq!(loaded.origin("broker.queue_type").to_string(), "default");
}

#[test]
fn the_environment_sets_every_type_of_value() {
    let loaded = from_environment(&[
        // A number to the eye, yet text: no type is guessed from the value.
        ("TASKYARD__BROKER__NAMESPACE", "007"),
        ("TASKYARD__BROKER__QUEUE_TYPE", "classic"),
        ("TASKYARD__SCHEDULER__AGEING_S", "2"),
        ("TASKYARD__GATEWAY__LISTEN", "[::1]:0"),
        ("TASKYARD__WORKER__ID", ""),
        ("TASKYARD__MODELS__SHOUT__HANDLER", "process"),
        ("TASKYARD__MODELS__SHOUT__SLOTS", "4"),
        ("TASKYARD__MODELS__SHOUT__EXPECTED_MS", "2.5"),
        ("TASKYARD__MODELS__SHOUT__CAPABILITIES", "['loud']"),
        ("TASKYARD__MODELS__SHOUT__PROCESS__COMMAND", r#"["python3", "shout.py"]"#),
        ("TASKYARD__MODELS__SHOUT__PROCESS__FILES", "true"),
        ("TASKYARD__MODELS__SHOUT__PROCESS__ENVIRONMENT__API__Key_FILE", "/run/x"),
    ])
    .unwrap();
    let Settings { broker, scheduler, gateway, models, .. } = loaded.settings;
    assert_eq!((broker.namespace.as_str(), broker.queue_type), ("007", QueueType::Classic));
    assert_eq!(scheduler.ageing_s, 2.0);
    assert_eq!(gateway.listen, "[::1]:0".parse().unwrap());
    let shout = &models["shout"];
    assert_eq!((shout.slots, shout.expected_ms, shout.timeout_ms), (4, Some(2.5), 60_000));
    assert_eq!(shout.capabilities, ["loud"]);
    let process = shout.process.as_ref().unwrap();
    assert_eq!((&*process.command, process.files), (&["python3".to_owned(), "shout.py".to_owned()][..], true));
    // A child's variable is passed on as it stands, its file is the child's to read.
    assert_eq!(process.environment, BTreeMap::from([("API__Key_FILE".to_owned(), "/run/x".to_owned())]));
}

#[test]
fn a_model_declared_with_a_hyphen_is_reached_from_a_shell() {
    let folder = TempDir::new().unwrap();
    let toml = "[models.a-b]\nhandler = 'simulated'\n[models.a-b.simulated]\n[models.c]\nhandler = 'simulated'\nsimulated = {}\n";
    let loaded =
        load(&folder, toml, &[("TASKYARD__MODELS__A_B__SLOTS", "7"), ("TASKYARD__MODELS__C__SLOTS", "8")]).unwrap();
    assert_eq!(loaded.settings.models.keys().collect::<Vec<_>>(), ["a-b", "c"]);
    assert_eq!(loaded.settings.models["a-b"].slots, 7);
    assert_eq!(loaded.origin("models.a-b.slots").to_string(), "environment:TASKYARD__MODELS__A_B__SLOTS");
    assert_eq!(loaded.settings.models["c"].slots, 8);
}

#[test]
fn a_secret_is_read_from_its_file_without_its_last_newline() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    write("broker-url", "amqp://u:s3cret@broker:5672/yard?token=s3cret\n");
    write("token", "Bearer s3cret\n");
    let store = write("store-url", "redis://:s3cret@store/1\r\n");
    // A path in the file is relative to the file.
    let toml = "
        [broker]
        url_file = 'broker-url'
        [artifacts]
        url = 'memory:///?token=s3cret'
        [models.llm]
        handler = 'http'
        [models.llm.http]
        url = 'https://u:s3cret@llm/v1?key=s3cret'
        headers.Authorization_file = 'token'
        headers.X-Team = 's3cret'
        [models.shout]
        handler = 'process'
        [models.shout.process]
        command = ['shout', 'amqp://u:s3cret@x']
        environment.TOKEN = 's3cret'
    ";
    let loaded = load(&folder, toml, &[("TASKYARD__STORE__URL_FILE", &store)]).unwrap();
    assert_eq!(loaded.settings.broker.url, "amqp://u:s3cret@broker:5672/yard?token=s3cret");
    assert_eq!(loaded.settings.store.url, "redis://:s3cret@store/1");
    assert_eq!(loaded.settings.models["llm"].http.as_ref().unwrap().headers["authorization"], "Bearer s3cret");
    assert_eq!(loaded.origin("store.url").to_string(), "environment:TASKYARD__STORE__URL_FILE");

    let shown: BTreeMap<String, String> =
        loaded.show().into_iter().map(|setting| (setting.key, setting.value.to_string())).collect();
    assert_eq!(shown["broker.url"], r#""amqp://u:***@broker:5672/yard?token=***""#);
    assert_eq!(shown["store.url"], r#""redis://:***@store/1""#);
    assert_eq!(shown["artifacts.url"], r#""memory:///?token=***""#);
    assert_eq!(shown["models.llm.http.url"], r#""https://u:***@llm/v1?key=***""#);
    assert_eq!(shown["models.llm.http.headers.authorization"], r#""***""#);
    assert_eq!(shown["models.llm.http.headers.x-team"], r#""***""#);
    assert_eq!(shown["models.shout.process.environment.TOKEN"], r#""***""#);
    assert_eq!(shown["models.shout.process.command"], r#"["shout", "amqp://u:***@x"]"#);
    assert_eq!(shown["models.llm.slots"], "1");
    assert!(!format!("{:?}", loaded.settings).contains("s3cret"), "Debug of the settings gives the secret away");
}

#[test]
fn the_environment_covers_a_secret_file_of_the_configuration_file() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("url"), "amqp://file").unwrap();
    let loaded = load(&folder, "broker.url_file = 'url'", &[("TASKYARD__BROKER__URL", "amqp://variable")]).unwrap();
    assert_eq!(loaded.settings.broker.url, "amqp://variable");
}

#[test]
fn files_are_relative_to_the_configuration_file() {
    let folder = TempDir::new().unwrap();
    let loaded = load(&folder, "", &[]).unwrap();
    assert_eq!(loaded.base_dir, folder.path());
    assert_eq!(loaded.path(Path::new("m.onnx")), folder.path().join("m.onnx"));
    assert_eq!(loaded.path(Path::new("/m.onnx")), PathBuf::from("/m.onnx"));
}

#[test]
fn a_role_by_itself_needs_a_broker_and_a_store_for_all() {
    let settings = |broker: &str, store: &str| {
        from_environment(&[("TASKYARD__BROKER__URL", broker), ("TASKYARD__STORE__URL", store)]).unwrap().settings
    };
    let refusal = settings("embedded:data", "redis://r").require_shared("taskyard worker").unwrap_err().to_string();
    assert!(refusal.starts_with("broker.url is embedded:") && refusal.contains("`taskyard worker`"), "{refusal}");
    let refusal = settings("amqp://r", "embedded:").require_shared("taskyard worker").unwrap_err().to_string();
    assert!(refusal.starts_with("store.url is embedded:"), "{refusal}");
    settings("amqp://r", "redis://r").require_shared("taskyard worker").unwrap();
}

#[test]
fn the_reference_of_models_names_every_setting_with_its_default() {
    let reference: toml::Table = include_str!("../../src/process/settings.models.toml").parse().unwrap();
    let written = reference["models"]["NAME"].clone();
    let model: ModelSettings = written.clone().try_into().unwrap();
    assert_eq!(toml::Value::try_from(&model).unwrap(), written, "a key is missing in the reference");

    let least = "handler = 'simulated'\nonnx = { task = 'file-type', file = 'm' }\nhttp.url = ''\nprocess.command = []\nsimulated = {}";
    let defaults = toml::Value::try_from(toml::from_str::<ModelSettings>(least).unwrap()).unwrap();
    let given: toml::Value = toml::from_str(least).unwrap();
    let mut compared = 0;
    compare(&written, &defaults, &given, &mut compared);
    assert!(compared >= 14, "only {compared} defaults were compared");

    fn compare(written: &toml::Value, default: &toml::Value, given: &toml::Value, compared: &mut usize) {
        let none = toml::Value::Table(Default::default());
        for (key, default) in default.as_table().unwrap() {
            match default {
                toml::Value::Table(_) => compare(&written[key], default, given.get(key).unwrap_or(&none), compared),
                _ if given.get(key).is_some() => {}
                _ => {
                    assert_eq!(&written[key], default, "the default of {key}");
                    *compared += 1;
                }
            }
        }
    }
}
