//! The rules for names, label keys and the like. Each function returns what is wrong, in the API's own words; an empty
//! list means valid.
//!
//! Source: k8s.io/apimachinery `util/validation`, `api/validate/content`.

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const QUALIFIED_WORDS: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
                               an alphanumeric character";

/// `DNS1123Label`: at most 63 of `a-z 0-9 -`.
pub fn dns_label(text: &str) -> Vec<String> {
    let mut errors = Vec::from_iter(too_long(text, 63, "characters"));
    if !is_dns_label(text) {
        let words = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                     start and end with an alphanumeric character";
        errors.push(pattern(words, LABEL, &["my-name", "123-abc"]));
    }
    errors
}

/// `DNS1123Subdomain`: labels joined by dots, at most 253.
pub fn dns_subdomain(text: &str) -> Vec<String> {
    let mut errors = Vec::from_iter(too_long(text, 253, "characters"));
    if !text.split('.').all(is_dns_label) {
        let words = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                     and must start and end with an alphanumeric character";
        errors.push(pattern(words, SUBDOMAIN, &["example.com"]));
    }
    errors
}

/// `DNS1035Label`: as a DNS label, and begins with a letter.
pub fn dns_1035_label(text: &str) -> Vec<String> {
    let mut errors = Vec::from_iter(too_long(text, 63, "characters"));
    if !is_dns_label(text) || text.starts_with(|c: char| c.is_ascii_digit()) {
        let words = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                     alphabetic character, and end with an alphanumeric character";
        errors.push(pattern(words, "[a-z]([-a-z0-9]*[a-z0-9])?", &["my-name", "abc-123"]));
    }
    errors
}

/// `prefix/name` or `name`: label and annotation keys, finalizers, resource names.
pub fn qualified(text: &str) -> Vec<String> {
    let examples = ["MyName", "my.name", "123-abc"];
    let parts: Vec<&str> = text.split('/').collect();
    let mut errors = Vec::new();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".into());
            } else {
                errors.extend(dns_subdomain(prefix).into_iter().map(|e| format!("prefix part {}", e)));
            }
            name
        }
        _ => {
            let regex = pattern(QUALIFIED_WORDS, QUALIFIED, &examples);
            let optional = " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
            return vec![format!("a valid label key {regex}{optional}")];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".into());
    } else if let Some(error) = too_long(name, 63, "bytes") {
        errors.push(format!("name part {error}"));
    }
    if !is_qualified_name(name) {
        errors.push(format!("name part {}", pattern(QUALIFIED_WORDS, QUALIFIED, &examples)));
    }
    errors
}

/// At most 63, empty or as the name part of a key.
pub fn label_value(text: &str) -> Vec<String> {
    let mut errors = Vec::from_iter(too_long(text, 63, "bytes"));
    if !text.is_empty() && !is_qualified_name(text) {
        let words = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
                     and must start and end with an alphanumeric character";
        let regex = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
        errors.push(pattern(words, regex, &["MyValue", "my_value", "12345"]));
    }
    errors
}

/// Any printable ASCII but `=`, at least one.
pub fn env_name(text: &str) -> Vec<String> {
    if text.is_empty() {
        return vec!["environment variable name must be non-empty".into()];
    }
    if text.chars().all(|c| matches!(c, ' '..='~') && c != '=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".into()]
}

/// A key of a config map or a secret.
pub fn config_key(text: &str) -> Vec<String> {
    let mut errors = Vec::from_iter(too_long(text, 253, "characters"));
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        let words = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        errors.push(pattern(words, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"]));
    }
    match text {
        "." => errors.push("must not be '.'".into()),
        ".." => errors.push("must not be '..'".into()),
        _ if text.starts_with("..") => errors.push("must not start with '..'".into()),
        _ => {}
    }
    errors
}

/// The name of a container's or service's port, for use as a target: at most 15, with a letter.
pub fn port_name(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 15 {
        errors.push("must be no more than 15 characters".into());
    }
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".into());
    }
    if text.contains("--") {
        errors.push("must not contain consecutive hyphens".into());
    }
    if text.starts_with('-') || text.ends_with('-') {
        errors.push("must not begin or end with a hyphen".into());
    }
    errors
}

/// What may stand as one segment of a URL's path: the rule for names that are no DNS names.
pub fn path_segment(text: &str) -> Vec<String> {
    if matches!(text, "." | "..") {
        return vec![format!("may not be '{text}'")];
    }
    ["/", "%"].iter().filter(|bad| text.contains(**bad)).map(|bad| format!("may not contain '{bad}'")).collect()
}

/// The API's sentence for a range.
pub fn between(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(first), Some(last)) = (text.bytes().next(), text.bytes().last()) else { return false };
    inner(first) && inner(last) && text.bytes().all(|b| inner(b) || b == b'-')
}

fn is_qualified_name(text: &str) -> bool {
    let (Some(first), Some(last)) = (text.bytes().next(), text.bytes().last()) else { return false };
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() && text.bytes().all(inner)
}

fn too_long(text: &str, limit: usize, unit: &str) -> Option<String> {
    (text.len() > limit).then(|| format!("must be no more than {limit} {unit}"))
}

fn pattern(words: &str, regex: &str, examples: &[&str]) -> String {
    let quoted: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{words} (e.g. {}regex used for validation is '{regex}')", quoted.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_the_api_says() {
        assert_eq!(
            dns_label("My_Pod"),
            ["a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
              and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"]
        );
        assert_eq!(
            dns_subdomain("a..b"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
              start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(qualified("/a"), ["prefix part must be non-empty"]);
        assert_eq!(dns_label(&"a".repeat(64)), ["must be no more than 63 characters"]);
    }

    #[test]
    fn accepts_what_is_valid() {
        for (check, text) in [
            (dns_label as fn(&str) -> Vec<String>, "0a-b"),
            (dns_subdomain, "a-1.b.c"),
            (dns_1035_label, "a1"),
            (qualified, "kubernetes.io/metadata.name"),
            (label_value, ""),
            (config_key, ".dockerconfigjson"),
            (port_name, "http-2"),
            (env_name, "1 B.c-d"),
        ] {
            assert_eq!(check(text), Vec::<String>::new(), "{text}");
        }
        assert!(!dns_1035_label("1a").is_empty());
        assert!(!port_name("8080").is_empty());
        assert!(!config_key("..a").is_empty());
    }
}
