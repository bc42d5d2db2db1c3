//! Label selectors, as text (`a=b,c!=d,e in (x,y),!f`) and as `LabelSelector` objects.
//!
//! Source: k8s.io/apimachinery `labels`, and "Labels and Selectors" in the documentation.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value};

use crate::names;

/// Requirements that must all hold. Without any it matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    requirements: Vec<Requirement>,
    /// What an absent `LabelSelector` object means.
    nothing: bool,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    Equals(String),
    /// Also holds where the label is absent.
    NotEquals(String),
    In(BTreeSet<String>),
    /// Also holds where the label is absent.
    NotIn(BTreeSet<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

/// Why a text or an object is no selector, in the API's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(String);

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match self {
            Self::Equals(wanted) => value == Some(wanted),
            Self::NotEquals(unwanted) => value != Some(unwanted),
            Self::In(wanted) => value.is_some_and(|v| wanted.contains(v)),
            Self::NotIn(unwanted) => value.is_none_or(|v| !unwanted.contains(v)),
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
            Self::Greater(limit) => number().is_some_and(|n| n > *limit),
            Self::Less(limit) => number().is_some_and(|n| n < *limit),
        }
    }
}

impl Selector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches no object.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// From the text of a query parameter.
    ///
    /// # Errors
    /// The API's message, without the `unable to parse` that the request handler puts before it.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        Parser { tokens: tokens(text), at: 0 }.selector()
    }

    /// From a map of labels that must be equal, as a Service's `spec.selector`.
    pub fn from_map(labels: &Map<String, Value>) -> Self {
        let equals = |(key, value): (&String, &Value)| Requirement {
            key: key.clone(),
            test: Test::Equals(value.as_str().unwrap_or_default().to_owned()),
        };
        let mut requirements: Vec<Requirement> = labels.iter().map(equals).collect();
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements, nothing: false }
    }

    /// From a `LabelSelector`: null matches nothing, an empty object everything.
    ///
    /// # Errors
    /// Where an operator is unknown or has the wrong number of values.
    pub fn from_object(object: &Value) -> Result<Self, Malformed> {
        let Some(object) = object.as_object() else { return Ok(Self::nothing()) };
        let mut selector = object.get("matchLabels").and_then(Value::as_object).map(Self::from_map).unwrap_or_default();
        for expression in object.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |key: &str| expression[key].as_str().unwrap_or_default();
            let listed = expression["values"].as_array().into_iter().flatten();
            let values: BTreeSet<String> = listed.filter_map(Value::as_str).map(str::to_owned).collect();
            let test = match text("operator") {
                "In" | "NotIn" if values.is_empty() => {
                    return Err(Malformed("for 'in', 'notin' operators, values set can't be empty".into()));
                }
                "In" => Test::In(values),
                "NotIn" => Test::NotIn(values),
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    return Err(Malformed("values set must be empty for exists and does not exist".into()));
                }
                "Exists" => Test::Exists,
                "DoesNotExist" => Test::Absent,
                other => return Err(Malformed(format!("{other:?} is not a valid label selector operator"))),
            };
            selector.requirements.push(requirement(text("key"), test)?);
        }
        selector.requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(selector)
    }

    /// `labels` is `metadata.labels`, or null.
    pub fn matches(&self, labels: &Value) -> bool {
        self.matches_by(|key| labels.get(key).and_then(Value::as_str))
    }

    /// With the labels behind a function, for those who keep them otherwise.
    pub fn matches_by<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.test.holds(label(&r.key)))
    }
}

/// Canonical: `a=b,c notin (x,y),!d`, keys sorted.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |values: &BTreeSet<String>| values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        let key = &self.key;
        match &self.test {
            Test::Equals(value) => write!(f, "{key}={value}"),
            Test::NotEquals(value) => write!(f, "{key}!={value}"),
            Test::In(values) => write!(f, "{key} in ({})", list(values)),
            Test::NotIn(values) => write!(f, "{key} notin ({})", list(values)),
            Test::Exists => write!(f, "{key}"),
            Test::Absent => write!(f, "!{key}"),
            Test::Greater(limit) => write!(f, "{key}>{limit}"),
            Test::Less(limit) => write!(f, "{key}<{limit}"),
        }
    }
}

fn requirement(key: &str, test: Test) -> Result<Requirement, Malformed> {
    let errors = names::qualified(key);
    if !errors.is_empty() {
        return Err(Malformed(format!("key: Invalid value: {key:?}: {}", errors.join("; "))));
    }
    let values: Vec<&String> = match &test {
        Test::Equals(value) | Test::NotEquals(value) => vec![value],
        Test::In(values) | Test::NotIn(values) => values.iter().collect(),
        _ => Vec::new(),
    };
    for (i, value) in values.into_iter().enumerate() {
        let errors = names::label_value(value);
        if !errors.is_empty() {
            let place = format!("values[{i}][{key}]");
            return Err(Malformed(format!("{place}: Invalid value: {value:?}: {}", errors.join("; "))));
        }
    }
    Ok(Requirement { key: key.to_owned(), test })
}

/// Symbols are `! = == != > < ( ) ,`; everything else between blanks and symbols is a word.
fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let symbol = |c: char| "!=<>(),".contains(c);
        let length = if rest.starts_with("==") || rest.starts_with("!=") {
            2
        } else if symbol(first) {
            1
        } else {
            rest.find(|c: char| symbol(c) || c.is_whitespace()).unwrap_or(rest.len())
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    tokens
}

struct Parser<'a> {
    tokens: Vec<&'a str>,
    at: usize,
}

impl<'a> Parser<'a> {
    /// Empty at the end.
    fn peek(&self) -> &'a str {
        self.tokens.get(self.at).copied().unwrap_or_default()
    }

    fn next(&mut self) -> &'a str {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn selector(mut self) -> Result<Selector, Malformed> {
        let mut requirements = Vec::new();
        while self.at < self.tokens.len() {
            let found = self.peek();
            if found != "!" && !is_word(found) {
                return Err(Malformed(format!("found '{found}', expected: !, identifier, or 'end of string'")));
            }
            let parsed = self.requirement();
            requirements.push(parsed.map_err(|e| Malformed(format!("unable to parse requirement: {e}")))?);
            match self.next() {
                "" => break,
                "," if self.peek() == "!" || is_word(self.peek()) => {}
                "," => return Err(Malformed(format!("found '{}', expected: identifier after ','", self.peek()))),
                other => return Err(Malformed(format!("found '{other}', expected: ',' or 'end of string'"))),
            }
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Selector { requirements, nothing: false })
    }

    fn requirement(&mut self) -> Result<Requirement, Malformed> {
        let absent = self.peek() == "!";
        self.at += usize::from(absent);
        let key = self.next();
        if !is_word(key) {
            return Err(Malformed(format!("found '{key}', expected: identifier")));
        }
        if absent {
            return requirement(key, Test::Absent);
        }
        if matches!(self.peek(), "" | ",") {
            return requirement(key, Test::Exists);
        }
        let test = match self.next() {
            "in" => Test::In(self.values()?),
            "notin" => Test::NotIn(self.values()?),
            "=" | "==" => Test::Equals(self.value()?.to_owned()),
            "!=" => Test::NotEquals(self.value()?.to_owned()),
            ">" => Test::Greater(self.number()?),
            "<" => Test::Less(self.number()?),
            other => {
                return Err(Malformed(format!("found '{other}', expected: in, notin, =, ==, !=, >, <")));
            }
        };
        requirement(key, test)
    }

    /// May be empty, as in `a=,b=c`.
    fn value(&mut self) -> Result<&'a str, Malformed> {
        match self.peek() {
            "" | "," => Ok(""),
            word if is_word(word) => Ok(self.next()),
            other => Err(Malformed(format!("found '{other}', expected: identifier"))),
        }
    }

    fn number(&mut self) -> Result<i64, Malformed> {
        let text = self.value()?;
        let message = || {
            Malformed(format!(
                "values[0]: Invalid value: {text:?}: for 'Gt', 'Lt' operators, the value must be an integer"
            ))
        };
        text.parse().map_err(|_| message())
    }

    fn values(&mut self) -> Result<BTreeSet<String>, Malformed> {
        let open = self.next();
        if open != "(" {
            return Err(Malformed(format!("found '{open}' expected: '('")));
        }
        let mut values = BTreeSet::new();
        loop {
            let word = match self.peek() {
                "," | ")" => "",
                word if is_word(word) => self.next(),
                other => return Err(Malformed(format!("found '{other}', expected: ',', ')' or identifier"))),
            };
            values.insert(word.to_owned());
            match self.next() {
                "," => {}
                ")" => return Ok(values),
                other => return Err(Malformed(format!("found '{other}', expected: ',' or ')'"))),
            }
        }
    }
}

fn is_word(token: &str) -> bool {
    !token.is_empty() && !token.starts_with(['!', '=', '<', '>', '(', ')', ','])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matches(selector: &str, labels: Value) -> bool {
        Selector::parse(selector).expect(selector).matches(&labels)
    }

    #[test]
    fn matches_as_documented() {
        let labels = json!({"a": "b", "n": "5", "e": "x"});
        for yes in ["", "a=b", "a==b,e in (x, y)", "c!=d", "!f", "a", "e notin (z)", "zz notin (z)", "n>4,n<6"] {
            assert!(matches(yes, labels.clone()), "{yes}");
        }
        for no in ["a=c", "a!=b", "!a", "f", "e in (z)", "n>5", "a>1", "a="] {
            assert!(!matches(no, labels.clone()), "{no}");
        }
        assert!(matches("a=", json!({"a": ""})));
    }

    #[test]
    fn prints_canonically() {
        let printed = |text: &str| Selector::parse(text).map(|s| s.to_string());
        assert_eq!(printed(" e in ( y,x ) ,a = b,! f, c!=d"), Ok("a=b,c!=d,e in (x,y),!f".into()));
        assert_eq!(printed("x,y notin(a)"), Ok("x,y notin (a)".into()));
    }

    #[test]
    fn refuses_in_the_words_of_the_api() {
        let said = |text: &str| Selector::parse(text).map(|_| ()).map_err(|e| e.to_string());
        assert_eq!(said(",a"), Err("found ',', expected: !, identifier, or 'end of string'".into()));
        assert_eq!(said("a=b,"), Err("found '', expected: identifier after ','".into()));
        assert_eq!(said("a in x"), Err("unable to parse requirement: found 'x' expected: '('".into()));
        assert_eq!(
            said("a b"),
            Err("unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, >, <".into())
        );
        assert!(said("-a=b").is_err());
    }

    #[test]
    fn objects_select_too() {
        let object = json!({"matchLabels": {"b": "1", "a": "2"},
            "matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["x"]}, {"key": "d", "operator": "Exists"}]});
        let selector = Selector::from_object(&object).expect("valid");
        assert_eq!(selector.to_string(), "a=2,b=1,c notin (x),d");
        assert!(selector.matches(&json!({"a": "2", "b": "1", "d": ""})));
        assert!(Selector::from_object(&json!({})).expect("valid").is_everything());
        assert!(!Selector::from_object(&Value::Null).expect("valid").matches(&json!({})));
        assert!(Selector::from_object(&json!({"matchExpressions": [{"key": "a", "operator": "In"}]})).is_err());
    }
}
