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

/// One URL, with the values of its query hidden as well: `?key=***`.
pub fn masked_url(url: &str) -> String {
    // The password first: it may hold a `?`.
    let url = masked(url);
    // Where a value had an @, the `?` went with what was before it.
    let Some(end) = url.find(['?', '&']) else { return url };
    let (address, query) = url.split_at(end);
    let hidden = |pair: &str| pair.split_once('=').map_or(MASK.to_owned(), |(name, _)| format!("{name}={MASK}"));
    let pairs: Vec<String> = query[1..].split('&').map(hidden).collect();
    format!("{address}{}{}", &query[..1], pairs.join("&"))
}

#[cfg(test)]
mod tests {
    use super::{masked, masked_url};

    #[test]
    fn what_a_query_says_is_hidden_too() {
        for (url, safe) in [
            ("amqp://u:s3cret@h/%2f?frame_max=8192&s3cret", "amqp://u:***@h/%2f?frame_max=***&***"),
            ("https://u:s3?cret@h/v1?key=s3cret=&=s3cret", "https://u:***@h/v1?key=***&=***"),
            ("https://h/v1?mail=s3cret@x&key=s3cret", "https://***@x&key=***"),
            ("https://h/v1", "https://h/v1"),
            ("embedded:data", "embedded:data"),
        ] {
            assert_eq!(masked_url(url), safe);
        }
    }

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
