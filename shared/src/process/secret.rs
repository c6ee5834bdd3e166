//! Keeps passwords out of what people and logs read.

/// Stands where a secret was.
pub const MASK: &str = "***";

/// `text` with the password of every URL in it replaced by `***`.
///
/// Errs to the safe side: of everything up to the last `@` of a word with `://`, only a user's name before a colon is
/// kept, so that a password with an unescaped `/` or `@` is hidden as well.
pub fn masked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("://") {
        let (before, after) = rest.split_at(start + 3);
        out.push_str(before);
        let word = after.find(|c: char| c.is_whitespace() || c == '"' || c == '\'').unwrap_or(after.len());
        rest = after;
        if let Some(at) = after[..word].rfind('@') {
            let user = after[..at].find(':').map_or("", |colon| &after[..=colon]);
            // A user's name that is no plain name may be the start of the secret.
            if user.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':')) {
                out.push_str(user);
            }
            out.push_str(MASK);
            rest = &after[at..];
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::masked;

    #[test]
    fn passwords_of_urls_are_hidden_and_the_rest_stays() {
        for (text, safe) in [
            ("amqp://guest:s3cret@host:5672/vhost", "amqp://guest:***@host:5672/vhost"),
            ("redis://:s3cret@host/0", "redis://:***@host/0"),
            ("redis://s3cret@host/0", "redis://***@host/0"),
            ("amqp://u:p@ss/wo:rd@host", "amqp://u:***@host"),
            ("amqp://u:/s3cret@host", "amqp://u:***@host"),
            ("from amqp://u:s3cret@a to amqp://u:s3cret@b.", "from amqp://u:***@a to amqp://u:***@b."),
            ("url=\"amqp://u:s3cret@a\" mail=x@y", "url=\"amqp://u:***@a\" mail=x@y"),
            ("embedded:data", "embedded:data"),
            ("http://host/path?q=1", "http://host/path?q=1"),
            ("no url, a@b: c", "no url, a@b: c"),
        ] {
            assert_eq!(masked(text), safe);
        }
    }
}
