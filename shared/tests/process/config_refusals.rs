//! Settings that are refused: each with one sentence that names the key and the layer, and no secret in it.

use std::os::unix::ffi::OsStringExt;

use taskyard_shared::process::config::load_from;
use tempfile::TempDir;

use crate::config::{environment, load};

/// Loads the file and the environment, which must be refused, and gives the sentence without the folder's name.
fn refusal(toml: &str, variables: &[(&str, &str)]) -> String {
    let folder = TempDir::new().unwrap();
    let sentence = load(&folder, toml, variables).expect_err(toml).to_string();
    assert!(!sentence.contains('\n'), "more than a line: {sentence}");
    assert!(!sentence.contains("s3cret"), "a secret is given away: {sentence}");
    sentence.replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn an_unknown_key_is_named_with_its_layer() {
    for (toml, sentence) in [
        ("[broker]\nulr = 1", "taskyard.toml:2: broker.ulr is not a setting; did you mean broker.url?"),
        ("[brokr]", "taskyard.toml:1: brokr is not a setting; did you mean broker?"),
        ("\n\nnonsense = 1", "taskyard.toml:3: nonsense is not a setting"),
        ("[models.m]\nslot = 1", "taskyard.toml:2: models.m.slot is not a setting; did you mean models.m.slots?"),
        (
            "[models.m.onnx]\nfiel = ''",
            "taskyard.toml:2: models.m.onnx.fiel is not a setting; did you mean models.m.onnx.file?",
        ),
        ("[broker]\ntls_file = 'x'", "taskyard.toml:2: broker.tls_file is not a setting"),
        ("log.level.x = 1", "taskyard.toml:1: log.level must be a string, not a table"),
    ] {
        assert_eq!(refusal(toml, &[]), sentence);
    }
    for (variable, sentence) in [
        ("TASKYARD__BROKER__ULR", "broker.ulr is not a setting; did you mean broker.url?"),
        ("TASKYARD__BROKER__URL__MORE", "broker.url.more is not a setting"),
        ("TASKYARD__BROKER____URL", r#"broker."" is not a setting"#),
        ("TASKYARD__", r#""" is not a setting"#),
        ("TASKYARD__BROKER", "broker must be a section, one variable for each of its settings, not one value"),
        ("TASKYARD__MODELS", "models must be a section, one variable for each of its settings, not one value"),
        ("TASKYARD__MODELS__M__SLOT", "models.m.slot is not a setting; did you mean models.m.slots?"),
    ] {
        assert_eq!(refusal("", &[(variable, "s3cret")]), format!("environment variable {variable}: {sentence}"));
    }
}

#[test]
fn files_of_tls_are_for_urls_of_tls_and_a_certificate_has_its_key() {
    let amqps = "url = 'amqps://u:s3cret@h/'";
    for (toml, sentence) in [
        (
            "[broker.tls]\nca_file = 'ca.pem'".to_owned(),
            "taskyard.toml:2: broker.tls.ca_file is used with amqps:// alone",
        ),
        (
            "[broker]\nurl = 'amqp://u:s3cret@h/'\ntls.ca_file = 'c'".to_owned(),
            "taskyard.toml:3: broker.tls.ca_file is used",
        ),
        (
            "[store]\nurl = 'redis://h/0'\ntls.key_file = 'k'".to_owned(),
            "store.tls.key_file is used with rediss:// alone",
        ),
        (format!("[broker]\n{amqps}\ntls.cert_file = 'c'"), "taskyard.toml:3: broker.tls.cert_file needs the other"),
        (format!("[broker]\n{amqps}\ntls.key_file = 'k'"), "taskyard.toml:3: broker.tls.key_file needs the other"),
    ] {
        let refused = refusal(&toml, &[]);
        assert!(refused.contains(sentence), "{refused}");
    }
    let folder = TempDir::new().unwrap();
    let toml = format!("[broker]\n{amqps}\ntls.ca_file = 'ca.pem'\ntls.cert_file = '/c'\ntls.key_file = '/k'");
    let tls = load(&folder, &toml, &[]).unwrap().settings.broker.tls;
    assert_eq!(tls.ca_file, folder.path().join("ca.pem"), "relative to the file");
    assert_eq!(tls.cert_file, std::path::Path::new("/c"));
}

#[test]
fn what_is_not_toml_is_named_with_its_line() {
    for (toml, place) in [
        ("[broker]\nurl = \"amqp://u:s3cret@h\nnamespace = 'n'", "taskyard.toml:2:25: not TOML: "),
        ("[broker]\n[broker]", "taskyard.toml:2:2: not TOML: "),
        ("[broker]\nheartbeat_s = 1\nheartbeat_s = 2", "taskyard.toml:3:1: not TOML: "),
        ("broker.url = amqp://u:s3cret@h", "taskyard.toml:1:"),
    ] {
        let sentence = refusal(toml, &[]);
        assert!(sentence.starts_with(place), "{sentence}");
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("latin1.toml");
    std::fs::write(&path, b"[broker]\nnamespace = \"\xe4\"").unwrap();
    let sentence = load_from(Some(&path), []).unwrap_err().to_string();
    assert_eq!(sentence, format!("{}:2:14: not TOML: not UTF-8", path.display()));
}

/// Whatever is in a file, it is answered by a sentence that can be printed.
#[test]
fn what_nobody_would_write_is_refused_too() {
    let cases: Vec<(&str, String)> = vec![
        ("a zero", "broker.namespace = 'a\0'".into()),
        ("a zero that is written", "broker.namespace = \"a\\u0000\"".into()),
        ("a key of two lines", "\"a\\nb\" = 1".into()),
        ("a key that rings", "broker.\"\\u0007\" = 1".into()),
        ("a model of two lines", "[models.\"a\\r\\nb\"]\nhandler = 'simulated'".into()),
        ("a tenant that clears the screen", "[tenants.\"\\u001b[2J\"]\nweight = 1.0".into()),
        ("an empty key", "\"\" = 1".into()),
        ("no value", "broker.url =".into()),
        ("half a table", "[broker".into()),
        ("a number that is none", "worker.lease_ms = 1_".into()),
        ("a date", "worker.lease_ms = 2030-01-01".into()),
        ("arrays in arrays", format!("a = {}", "[".repeat(100_000))),
        ("tables in tables", format!("a = {}", "{b = ".repeat(100_000))),
        ("dots without end", format!("a{} = 1", ".a".repeat(100_000))),
        ("headings without end", format!("[a{}]", ".a".repeat(100_000))),
        ("many unknown keys", (0..100_000).map(|number| format!("k{number} = 1\n")).collect()),
        ("a long key", format!("{} = 1", "k".repeat(1_000_000))),
        ("a long value", format!("broker.namespace = '{}'", "n".repeat(1_000_000))),
        ("a reversed word", "\u{202e}broker = 1".into()),
    ];
    for (name, toml) in cases {
        let sentence = refusal(&toml, &[]);
        assert!(!sentence.chars().any(char::is_control), "{name}: {sentence:?}");
        assert!(sentence.starts_with("taskyard.toml:"), "{name}: {}", &sentence[..sentence.len().min(200)]);
        assert!(sentence.len() < 1000, "{name}: {} bytes", sentence.len());
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = TempDir::new().unwrap();
    let missing = folder.path().join("none.toml");
    for (path, problem) in [
        (missing.as_path(), "No such file"),
        (folder.path(), "Is a directory"),
        (std::path::Path::new("/dev/zero"), "longer than"),
    ] {
        let sentence = load_from(Some(path), []).unwrap_err().to_string();
        let start = format!("cannot read the configuration file {}: ", path.display());
        assert!(sentence.starts_with(&start) && sentence.contains(problem), "{sentence}");
    }
}

#[test]
fn a_wrong_type_is_named() {
    for (toml, sentence) in [
        ("broker.heartbeat_s = '10'", "taskyard.toml:1: broker.heartbeat_s must be a whole number, not a string"),
        ("broker.heartbeat_s = 1.5", "taskyard.toml:1: broker.heartbeat_s must be a whole number, not 1.5"),
        ("broker.url = 1", "taskyard.toml:1: broker.url must be a string, not 1"),
        ("broker = 1", "taskyard.toml:1: broker must be a table, not 1"),
        ("models = []", "taskyard.toml:1: models must be a table, not an array"),
        ("broker.url_file = 1", "taskyard.toml:1: broker.url must be the path of a file, not 1"),
        (
            "worker.lease_ms = 99999999999999999999",
            "taskyard.toml:1: worker.lease_ms must be a whole number, not 99999999999999999999",
        ),
        (
            "models.m.process.command = 'rm -rf $(pwd); true'",
            r#"taskyard.toml:1: models.m.process.command must be an array of strings such as ["a", "b"], not a string"#,
        ),
        (
            "models.m.capabilities = ['a', 1]",
            r#"taskyard.toml:1: models.m.capabilities must be an array of strings such as ["a", "b"], not 1"#,
        ),
        (
            "models.m.process.files = 'yes'",
            "taskyard.toml:1: models.m.process.files must be true or false, not a string",
        ),
    ] {
        assert_eq!(refusal(toml, &[]), sentence);
    }
    for (variable, value, sentence) in [
        ("TASKYARD__BROKER__HEARTBEAT_S", "s3cret", "broker.heartbeat_s must be a whole number, not what is there"),
        (
            "TASKYARD__MODELS__M__PROCESS__FILES",
            "yes",
            "models.m.process.files must be true or false, not what is there",
        ),
        ("TASKYARD__BROKER__HEARTBEAT_S", "", "broker.heartbeat_s must be a whole number, not empty"),
        (
            "TASKYARD__MODELS__M__PROCESS__COMMAND",
            "cat; s3cret",
            r#"models.m.process.command must be an array of strings such as ["a", "b"], not what is there"#,
        ),
    ] {
        assert_eq!(refusal("", &[(variable, value)]), format!("environment variable {variable}: {sentence}"));
    }
    let bytes = [("TASKYARD__BROKER__URL".into(), std::ffi::OsString::from_vec(vec![0xff]))];
    let sentence = load_from(None, bytes).unwrap_err().to_string();
    assert!(sentence.ends_with("broker.url must be a string, not bytes that are not UTF-8"), "{sentence}");
}

#[test]
fn a_secret_that_cannot_be_read_is_named() {
    let folder = TempDir::new().unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "\n").unwrap();
    for (path, problem) in [
        (folder.path().join("none"), "No such file"),
        (empty, "it is empty"),
        ("/dev/zero".into(), "longer than"),
        (folder.path().to_owned(), "Is a directory"),
    ] {
        let path = path.to_str().unwrap();
        let sentence = refusal("", &[("TASKYARD__BROKER__URL_FILE", path)]);
        let start = format!(
            "environment variable TASKYARD__BROKER__URL_FILE: broker.url cannot be read from the file {path}: "
        );
        assert!(sentence.starts_with(&start) && sentence.contains(problem), "{sentence}");
    }
    let sentence = refusal("[store]\nurl_file = 'none'", &[]);
    assert!(
        sentence.starts_with("taskyard.toml:2: store.url cannot be read from the file none: No such"),
        "{sentence}"
    );
    let sentence = refusal("[store]\nurl_file = 'none'\nurl = 'redis://h'", &[]);
    assert!(sentence.starts_with("taskyard.toml:"), "{sentence}");
}

#[test]
fn a_value_set_twice_in_a_layer_is_refused() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("url");
    std::fs::write(&file, "amqp://h").unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(
        refusal("", &[("TASKYARD__BROKER__URL", "amqp://u:s3cret@h"), ("TASKYARD__BROKER__URL_FILE", file)]),
        "environment variable TASKYARD__BROKER__URL_FILE: broker.url is set twice, here and by environment variable \
         TASKYARD__BROKER__URL"
    );
    let toml = format!("[broker]\nurl = 'amqp://h'\nurl_file = '{file}'");
    assert_eq!(refusal(&toml, &[]), "taskyard.toml:3: broker.url is set twice, here and by taskyard.toml:2");
}

/// A model of every handler, right but for what is put in place of `{}`.
fn model(handler: &str, own: &str, table: &str) -> String {
    format!("[models.m]\nhandler = '{handler}'\n{own}\n[models.m.{handler}]\n{table}")
}

#[test]
fn a_value_that_makes_no_sense_is_refused_with_the_reason() {
    let set = |key: &str, value: &str| refusal(&format!("{key} = {value}"), &[]);
    for (key, value, problem) in [
        ("broker.heartbeat_s", "0", "must be from 1 to 3600, not 0"),
        ("broker.heartbeat_s", "-1", "must be from 1 to 3600, not -1"),
        ("broker.heartbeat_s", "70000", "must be from 1 to 3600, not 70000"),
        ("broker.in_flight", "0", "must be from 1 to 1000000, not 0"),
        ("worker.prefetch", "-1", "must be from 0 to 10000, not -1"),
        ("worker.lease_ms", "199", "must be from 200 to 3600000, not 199"),
        ("worker.drain_s", "-1", "must be from 0 to 604800, not -1"),
        ("worker.retry_first_ms", "300001", "must not be more than worker.retry_most_ms"),
        ("scheduler.shards", "0", "must be from 1 to 64, not 0"),
        ("scheduler.shards", "65", "must be from 1 to 64, not 65"),
        ("scheduler.window_tasks", "0", "must be from 1 to 65535, not 0"),
        ("scheduler.window_tasks", "65536", "must be from 1 to 65535, not 65536"),
        ("scheduler.ageing_s", "-1", "must be from 0 to 1000000000, not -1.0"),
        ("scheduler.ageing_s", "nan", "must be from 0 to 1000000000, not nan"),
        ("scheduler.policy", "'random'", "must be one of cmu, fair, fifo, strict, edf, wspt, not \"random\""),
        ("broker.queue_type", "'stream'", "must be one of auto, classic, quorum, not \"stream\""),
        ("log.format", "'xml'", "must be one of text, json, not \"xml\""),
        ("gateway.listen", "'localhost'", "must be an address and a port such as 127.0.0.1:8080, not \"localhost\""),
        ("gateway.max_body_bytes", "100000000", "must be from 1024 to 8388608, not 100000000"),
        ("broker.namespace", "''", "must match [a-z0-9][a-z0-9._-]{0,63}"),
        ("broker.namespace", "'A'", "must match [a-z0-9][a-z0-9._-]{0,63}"),
        ("broker.namespace", "'.a'", "must match [a-z0-9][a-z0-9._-]{0,63}"),
        ("broker.namespace", "'a{b}'", "must match [a-z0-9][a-z0-9._-]{0,63}"),
        ("worker.id", "'a/b'", "must be empty or match [A-Za-z0-9][A-Za-z0-9._-]{0,127}"),
        ("log.level", "'infoo'", "must be levels such as info or info,lapin=warn: \"infoo\" is none of"),
        ("log.level", "'info,lapin=loud'", "must be levels such as info or info,lapin=warn: "),
    ] {
        let sentence = set(key, value);
        assert!(sentence.starts_with(&format!("taskyard.toml:1: {key} {problem}")), "{sentence}");
    }
    let long = set("broker.namespace", &format!("'{}'", "a".repeat(65)));
    assert!(long.contains("must match"), "{long}");
    let sentence = refusal("", &[("TASKYARD__WORKER__LEASE_MS", "5")]);
    assert_eq!(
        sentence,
        "environment variable TASKYARD__WORKER__LEASE_MS: worker.lease_ms must be from 200 to 3600000, not 5"
    );
}

#[test]
fn a_url_is_refused_without_being_printed() {
    let scheme = "must begin with amqp:// or amqps://, or be embedded: or embedded:DIR";
    for (url, problem) in [
        ("", scheme),
        ("s3cret", scheme),
        ("http://u:s3cret@h", scheme),
        ("redis://u:s3cret@h", scheme),
        ("amqp:u:s3cret@h", scheme),
        ("AMQP://u:s3cret@h", scheme),
        ("amqp://", "names no host"),
        ("amqp://u:s3cret@", "is not a URL"),
        ("amqp://u:s3cret@h:0", "names port 0"),
        ("amqp://u:s3cret@h:99999", "is not a URL: invalid port number"),
        ("amqp://u:s3cret/x@h", "is not a URL: invalid port number"),
        ("amqp://u:s3cret@h /", "must be at most 2048 bytes without spaces"),
        ("amqp://u:s3cret@[::1", "is not a URL: invalid IPv6 address"),
        ("amqp://u:${PASSWORD}s3cret@h", "holds ${…}, which is not replaced here"),
        ("amqp://u:s3cret@h/a/b", "names a vhost with an unescaped /"),
        ("embedded://s3cret", "must be embedded: alone or with a folder, embedded:DIR"),
        ("amqp://u:s3cret@h/y?frame_max=1", "has a frame_max that cannot be: it must be from 4096 to 4294967295, or 0"),
        ("amqp://h/y?frame_max=99999999999", "has a frame_max that cannot be"),
        ("amqp://h/y?frame_max=s3cret", "has a frame_max that cannot be"),
        ("amqp://h?heartbeat=70000", "has a heartbeat that cannot be: it must be a whole number of at most 65535"),
        ("amqp://h?channel_max=-1", "has a channel_max that cannot be"),
        ("amqp://h?connection_timeout=soon", "has a connection_timeout that cannot be"),
        ("amqp://h?auth_mechanism=s3cret", "has an auth_mechanism that is none of plain, "),
    ] {
        let sentence = refusal(&format!("broker.url = '{url}'"), &[]);
        assert!(sentence.starts_with(&format!("taskyard.toml:1: broker.url {problem}")), "{url}: {sentence}");
    }
    for (url, problem) in [
        ("amqp://u:s3cret@h", "must begin with redis:// or rediss://, or be embedded: or embedded:DIR"),
        ("rediss://u:s3cret@h/0#insecure", "must not have a part after #"),
        ("redis://u:s3cret@h/zero", "must end in the number of a database, such as /0"),
        ("redis://u:s3cret@h/-1", "must end in the number of a database, such as /0"),
    ] {
        let sentence = refusal(&format!("store.url = '{url}'"), &[]);
        assert!(sentence.starts_with(&format!("taskyard.toml:1: store.url {problem}")), "{url}: {sentence}");
    }
    let place = "must be file:///FOLDER";
    for (url, problem) in [
        ("ftp://b/s3cret", place),
        ("http://s3cret", place),
        (":", "must be a URL such as file:///FOLDER: "),
        ("s3cret", "must be a URL such as file:///FOLDER: "),
        ("file://host/s3cret", "must be file:///FOLDER, with a path from the root"),
        ("file:relative", "must be file:///FOLDER, with a path from the root"),
    ] {
        let sentence = refusal(&format!("artifacts.url = '{url}'"), &[]);
        assert!(sentence.starts_with(&format!("taskyard.toml:1: artifacts.url {problem}")), "{url}: {sentence}");
    }
    let folder = TempDir::new().unwrap();
    for (broker, store) in [
        ("amqp://guest:guest@rabbitmq:5672", "redis://redis:6379/0"),
        ("amqps://u:p%40ss@host/%2f?heartbeat=10", "rediss://:p@[::1]:6379"),
        ("embedded:", "embedded:/var/lib/taskyard"),
        ("embedded:data", "redis://redis/"),
        ("amqp://h/y?frame_max=131072&channel_max=9&auth_mechanism=PLAIN&other=x", "redis://redis/"),
        ("amqp://h/y?frame_max=0", "redis://redis/"),
    ] {
        load(&folder, &format!("broker.url = '{broker}'\nstore.url = '{store}'"), &[]).unwrap();
    }
    for url in ["", " ", "file:///var/lib/taskyard", " file:///a "] {
        load(&folder, &format!("artifacts.url = '{url}'"), &[]).unwrap();
    }
}

#[test]
fn a_model_that_makes_no_sense_is_refused_with_the_reason() {
    for (toml, sentence) in [
        ("[models.m]".to_owned(), "taskyard.toml:1: models.m.handler must be given"),
        ("[models.m]\nslots = 1".to_owned(), "taskyard.toml:1: models.m.handler must be given"),
        (
            "[models.m]\nhandler = 'magic'".to_owned(),
            "taskyard.toml:2: models.m.handler must be one of onnx, http, process, training, data, search, simulated, not \"magic\"",
        ),
        (
            "[models.m]\nhandler = 'simulated'".to_owned(),
            "taskyard.toml:1: models.m.simulated must be there, as the handler is simulated",
        ),
        (
            model("simulated", "http.url = 'http://h'", ""),
            "taskyard.toml:3: models.m.http must not be there, as the handler is simulated",
        ),
        (model("simulated", "slots = 0", ""), "taskyard.toml:3: models.m.slots must be from 1 to 10000, not 0"),
        (model("simulated", "max_batch = 0", ""), "taskyard.toml:3: models.m.max_batch must be from 1 to 10000, not 0"),
        (
            model("simulated", "max_attempts = 101", ""),
            "taskyard.toml:3: models.m.max_attempts must be from 1 to 100, not 101",
        ),
        (
            model("simulated", "timeout_ms = 0", ""),
            "taskyard.toml:3: models.m.timeout_ms must be from 1 to 31536000000, not 0",
        ),
        (
            model("simulated", "expected_ms = 0", ""),
            "taskyard.toml:3: models.m.expected_ms must be above 0 and at most 31536000000, not 0.0",
        ),
        (
            model("simulated", "version = ''", ""),
            "taskyard.toml:3: models.m.version must match [a-z0-9][a-z0-9._-]{0,63}",
        ),
        (
            model("simulated", "capabilities = ['A']", ""),
            "taskyard.toml:3: models.m.capabilities holds \"A\", which does not match [a-z0-9][a-z0-9._-]{0,127}",
        ),
        (
            model("simulated", "capabilities = ['a', 'a']", ""),
            "taskyard.toml:3: models.m.capabilities holds \"a\" twice",
        ),
        (
            model("simulated", "", "failure_ratio = 1.5"),
            "taskyard.toml:5: models.m.simulated.failure_ratio must be from 0 to 1, not 1.5",
        ),
        (
            model("simulated", "", "service_ms = -1"),
            "taskyard.toml:5: models.m.simulated.service_ms must be from 0 to 31536000000, not -1.0",
        ),
        (model("process", "", ""), "taskyard.toml:4: models.m.process.command must be given"),
        (
            model("process", "", "command = []"),
            "taskyard.toml:5: models.m.process.command must be an array of a program and its arguments such as \
             [\"python3\", \"model.py\"]",
        ),
        (
            model("process", "", "command = [' ', 'x']"),
            "taskyard.toml:5: models.m.process.command must be an array of a program and its arguments such as \
             [\"python3\", \"model.py\"]",
        ),
        (
            model("process", "", "command = ['x']\nenvironment.'A=B' = 's3cret'"),
            "taskyard.toml:6: models.m.process.environment.\"A=B\" cannot be a variable: a name without = is needed, \
             and no zero byte",
        ),
        (
            model("http", "", "url = 'ftp://u:s3cret@h'"),
            "taskyard.toml:5: models.m.http.url must begin with http:// or https://",
        ),
        (
            model("http", "", "url = 'http://h'\nheaders.'a b' = 's3cret'"),
            "taskyard.toml:6: models.m.http.headers.\"a b\" is not the name of a header",
        ),
        (
            model("http", "", "url = 'http://h'\nheaders.a = \"s3cret\\r\\nb: c\""),
            "taskyard.toml:6: models.m.http.headers.a must not hold control characters",
        ),
        (
            model("http", "", "url = 'http://h'\nprotocol = 'soap'"),
            "taskyard.toml:6: models.m.http.protocol must be one of json, open-inference, openai, not \"soap\"",
        ),
        (
            model("onnx", "", "task = 'file-type'\nfile = 'm'"),
            "taskyard.toml:4: models.m.onnx.config must be given for this task",
        ),
        (
            model("onnx", "", "task = 'text-embedding'\nfile = 'm'\ntokenizer = 't'\nhead = 'h'"),
            "taskyard.toml:8: models.m.onnx.head is not used by this task",
        ),
        (
            model("onnx", "", "task = 'text-embedding'\nfile = 'm'\ntokenizer = 't'\nsha256 = '00'"),
            "taskyard.toml:8: models.m.onnx.sha256 must be 64 hexadecimal digits",
        ),
    ] {
        assert_eq!(refusal(&toml, &[]), sentence);
    }
    for name in ["M", "'a/b'", "'../x'", "_other", "''", "'a b'", "'m\u{430}'", &"m".repeat(129)] {
        let toml = format!("[models.{name}]\nhandler = 'simulated'\nsimulated = {{}}");
        let sentence = refusal(&toml, &[]);
        assert!(sentence.contains("is not a model's name"), "{name}: {sentence}");
    }
}

#[test]
fn a_variable_of_another_program_is_no_setting() {
    load_from(None, environment(&[("TASKYARD_CONFIG", "x"), ("TASKYARDISH__X", "y"), ("XTASKYARD__A", "z")])).unwrap();
}
