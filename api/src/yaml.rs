//! YAML bodies, read as sigs.k8s.io/yaml reads them: YAML 1.1 scalars, then JSON.

use serde_json::{Number, Value};
use serde_saphyr::{DuplicateKeyPolicy, Options};

use crate::json::Parsed;

/// Why bytes are no YAML, or a value cannot be written as YAML.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("error converting YAML to JSON: yaml: {0}")]
    Read(String),
    #[error("write YAML: {0}")]
    Write(String),
}

/// One document. A key given twice is told, and the last one wins.
///
/// # Errors
/// Where the bytes are no YAML, hold several documents, or expand beyond the parser's budget.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Error> {
    let mut options = Options::default();
    options.duplicate_keys = DuplicateKeyPolicy::LastWins;
    options.legacy_octal_numbers = true;
    options.with_snippet = false;
    let text = std::str::from_utf8(bytes).map_err(|e| Error::Read(e.to_string()))?;
    let read: Result<Document, _> = serde_saphyr::from_str_with_options(text, options);
    let Document(mut parsed) = read.map_err(|e| Error::Read(e.to_string()))?;
    whole_numbers(&mut parsed.value);
    Ok(parsed)
}

struct Document(Parsed);

impl<'de> serde::Deserialize<'de> for Document {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        crate::json::read(input).map(Document)
    }
}

/// # Errors
/// Where the writer cannot express the value.
pub fn write(value: &Value) -> Result<String, Error> {
    serde_saphyr::to_string(value).map_err(|e| Error::Write(e.to_string()))
}

/// 1.0 and 1e3 are integers once they went through Go's JSON.
fn whole_numbers(value: &mut Value) {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53
    match value {
        Value::Number(number) if number.is_f64() => {
            let float = number.as_f64().unwrap_or_default();
            if float.fract() == 0.0 && float.abs() <= EXACT {
                *number = Number::from(float as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(entries) => entries.iter_mut().for_each(|(_, item)| whole_numbers(item)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_scalars_as_kubernetes_does() {
        let text = "mode: 0644\noctal: 0o17\nf: 1.0\nbig: 1e3\nyes_: yes\non: on\nq: \"0644\"\nnone: ~\nport: 80\nv: 1.10.0\nt: 2026-01-02\n? 1\n: one\n";
        let parsed = parse(text.as_bytes()).expect("YAML");
        assert_eq!(
            parsed.value,
            json!({"mode": 420, "octal": 15, "f": 1, "big": 1000, "yes_": true, "true": true, "q": "0644", "none": null,
                "port": 80, "v": "1.10.0", "t": "2026-01-02", "1": "one"})
        );
    }

    #[test]
    fn merges_anchors_and_tells_duplicates() {
        let parsed = parse(b"a: &x {b: 1}\nc:\n  <<: *x\n  d: 2\nd: 1\nd: 2\n").expect("YAML");
        assert_eq!(parsed.value, json!({"a": {"b": 1}, "c": {"b": 1, "d": 2}, "d": 2}));
        assert_eq!(parsed.duplicates, ["duplicate field \"d\""]);
        assert!(parse(b"a: [").is_err());
        assert!(parse(b"a: 1\n---\nb: 2\n").is_err());
    }

    #[test]
    fn what_is_written_reads_the_same() {
        let value = json!({"a": "yes", "b": "0644", "c": ["1", 1, null, true, {"d": "x: y\n#z\n"}], "e": "", "f": {}, "g": [],
            "h": "null", "i": "1e3", "j": "2026-01-02", "k": "~", "l": "a\nb", "m": " lead", "n": "0x1f", "o": "on", "p": "1_000"});
        assert_eq!(parse(write(&value).expect("written").as_bytes()).expect("YAML").value, value);
    }
}
