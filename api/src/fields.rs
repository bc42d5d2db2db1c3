//! Field selectors: `metadata.name=a,status.phase!=Running`.
//!
//! Source: k8s.io/apimachinery `fields`.

use std::fmt;

/// Terms that must all hold. Without any it matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    pub terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// As `spec.nodeName`.
    pub field: String,
    pub equal: bool,
    pub value: String,
}

/// Why a text is no field selector, in the API's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("invalid selector: '{selector}'; can't understand '{part}'")]
    Term { selector: String, part: String },
    #[error("invalid field selector: invalid escape sequence: {0}")]
    Escape(String),
}

impl Selector {
    /// # Errors
    /// Where a part has no operator, or a value an unknown escape.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let mut terms = Vec::new();
        for part in split(text).into_iter().filter(|part| !part.is_empty()) {
            let unclear = || Malformed::Term { selector: text.to_owned(), part: part.to_owned() };
            let (field, equal, value) = operator(part).ok_or_else(unclear)?;
            terms.push(Term { field: field.to_owned(), equal, value: unescape(value)? });
        }
        Ok(Self { terms })
    }

    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// `field` yields a field's value, empty where it is absent.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> &'a str) -> bool {
        self.terms.iter().all(|term| (field(&term.field) == term.value) == term.equal)
    }

    /// The value that a field must have, where the selector says so.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, term) in self.terms.iter().enumerate() {
            let (comma, operator) = (if i > 0 { "," } else { "" }, if term.equal { "=" } else { "!=" });
            write!(f, "{comma}{}{operator}{}", term.field, escape(&term.value))?;
        }
        Ok(())
    }
}

/// At commas that no backslash precedes.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn operator(part: &str) -> Option<(&str, bool, &str)> {
    part.char_indices().find_map(|(i, _)| {
        let (field, rest) = part.split_at(i);
        for (symbol, equal) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(value) = rest.strip_prefix(symbol) {
                return Some((field, equal, value));
            }
        }
        None
    })
}

fn unescape(text: &str) -> Result<String, Malformed> {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(next @ ('\\' | ',' | '=')) => plain.push(next),
                Some(next) => return Err(Malformed::Escape(format!("\\{next}"))),
                None => return Err(Malformed::Escape("\\".into())),
            },
            ',' | '=' => return Err(Malformed::Escape(c.to_string())),
            other => plain.push(other),
        }
    }
    Ok(plain)
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_matches_and_prints() {
        let selector = Selector::parse("metadata.name=a\\,b,status.phase!=Running,spec.nodeName==").expect("valid");
        assert_eq!(selector.to_string(), "metadata.name=a\\,b,status.phase!=Running,spec.nodeName=");
        let pod = |phase: &'static str| {
            move |field: &str| match field {
                "metadata.name" => "a,b",
                "status.phase" => phase,
                _ => "",
            }
        };
        assert!(selector.matches(pod("Pending")));
        assert!(!selector.matches(pod("Running")));
        assert_eq!(selector.required("metadata.name"), Some("a,b"));
    }

    #[test]
    fn refuses_in_the_words_of_the_api() {
        let said = Selector::parse("a=b,metadata.name").map_err(|e| e.to_string());
        assert_eq!(said, Err("invalid selector: 'a=b,metadata.name'; can't understand 'metadata.name'".into()));
    }
}
