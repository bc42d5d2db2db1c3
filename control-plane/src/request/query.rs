//! A URL's query as values.

use api::status::{FieldError, Status};

use super::negotiate::Include;
use crate::verbs::FieldValidation;

/// How an answer relates to the `resourceVersion` that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionMatch {
    Exact,
    NotOlderThan,
}

/// `metav1.ListOptions`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    pub label_selector: String,
    pub field_selector: String,
    pub limit: usize,
    pub token: String,
    /// Empty where it was not given.
    pub resource_version: String,
    pub version_match: Option<VersionMatch>,
    pub watch: bool,
    pub bookmarks: bool,
    pub send_initial_events: Option<bool>,
    pub timeout_seconds: Option<u64>,
}

/// What a write's query says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteQuery {
    pub dry_run: bool,
    pub field_validation: FieldValidation,
}

/// The parameters in their order, escapes taken out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

/// Takes percent escapes out. What is no escape stays.
pub(super) fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(i).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                plain.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, _, _) => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

impl Query {
    pub fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (unescape(name), unescape(&value.replace('+', " ")))
                })
                .collect(),
        )
    }

    /// The first value of a parameter; empty where it is absent.
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    /// As Go's converter has it: anything but `false` and `0` is true.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.has(name).then(|| !matches!(self.get(name).to_ascii_lowercase().as_str(), "false" | "0"))
    }

    /// `kubectl` asks for it where a person reads.
    pub fn pretty(&self) -> bool {
        self.flag("pretty").unwrap_or(false)
    }

    /// # Errors
    /// 400 where it is no number.
    pub fn number(&self, name: &str) -> Result<Option<i64>, Status> {
        match self.get(name) {
            "" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
        }
    }

    /// # Errors
    /// 400 for a value that is none of the three.
    pub fn include(&self) -> Result<Include, Status> {
        match self.get("includeObject") {
            "" | "Metadata" => Ok(Include::Metadata),
            "None" => Ok(Include::None),
            "Object" => Ok(Include::Object),
            other => Err(Status::bad_request(format!("unrecognized includeObject value: {other:?}"))),
        }
    }

    /// # Errors
    /// 400 or 422 where the options contradict one another.
    pub fn list(&self) -> Result<ListQuery, Status> {
        let version_match = match self.get("resourceVersionMatch") {
            "" => None,
            "Exact" => Some(VersionMatch::Exact),
            "NotOlderThan" => Some(VersionMatch::NotOlderThan),
            other => {
                let known = ["Exact", "NotOlderThan"];
                return Err(refused(FieldError::not_supported("resourceVersionMatch", other, &known)));
            }
        };
        let list = ListQuery {
            label_selector: self.get("labelSelector").into(),
            field_selector: self.get("fieldSelector").into(),
            limit: usize::try_from(self.number("limit")?.unwrap_or(0)).unwrap_or(0),
            token: self.get("continue").into(),
            resource_version: self.get("resourceVersion").into(),
            version_match,
            watch: self.flag("watch").unwrap_or(false),
            bookmarks: self.flag("allowWatchBookmarks").unwrap_or(false),
            send_initial_events: self.flag("sendInitialEvents"),
            timeout_seconds: self.number("timeoutSeconds")?.and_then(|s| u64::try_from(s).ok()),
        };
        list.check().map(|()| list)
    }

    /// # Errors
    /// 400 or 422 for a value that the API does not know.
    pub fn write(&self, kind: &str) -> Result<WriteQuery, Status> {
        let invalid = |error| Status::invalid(kind, "", &[error]);
        let dry_run = match self.get("dryRun") {
            "" => false,
            "All" => true,
            other => return Err(invalid(FieldError::not_supported("dryRun", other, &["All"]))),
        };
        let field_validation = match self.get("fieldValidation") {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                let known = ["", "Ignore", "Strict", "Warn"];
                return Err(invalid(FieldError::not_supported("fieldValidation", other, &known)));
            }
        };
        let manager = self.get("fieldManager");
        if manager.len() > 128 {
            return Err(invalid(FieldError::invalid("fieldManager", manager, "must be no more than 128 bytes")));
        }
        if !manager.chars().all(|c| !c.is_control()) {
            return Err(invalid(FieldError::invalid(
                "fieldManager",
                manager,
                "should only contain printable characters",
            )));
        }
        Ok(WriteQuery { dry_run, field_validation })
    }
}

fn refused(error: FieldError) -> Status {
    Status::invalid("ListOptions.meta.k8s.io", "", &[error])
}

impl ListQuery {
    fn check(&self) -> Result<(), Status> {
        let forbidden = |field: &str, why: &str| Err(refused(FieldError::forbidden(field, why)));
        if self.watch {
            return match (self.send_initial_events, self.version_match) {
                (Some(_), Some(VersionMatch::NotOlderThan)) | (None, None) => Ok(()),
                (Some(_), _) => forbidden(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ),
                (None, Some(_)) => forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ),
            };
        }
        if self.send_initial_events.is_some() {
            return forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list");
        }
        match self.version_match {
            None => Ok(()),
            Some(_) if !self.token.is_empty() => {
                forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided")
            }
            Some(_) if self.resource_version.is_empty() => forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ),
            Some(VersionMatch::Exact) if self.resource_version == "0" => forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ),
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_unescaped() {
        let query = Query::parse(Some("labelSelector=a%3Db%2Cc&limit=5&watch=true&x=%zz&y=a+b"));
        let list = query.list().unwrap();
        assert_eq!((list.label_selector.as_str(), list.limit, list.watch), ("a=b,c", 5, true));
        assert_eq!((query.get("x"), query.get("y")), ("%zz", "a b"));
    }

    #[test]
    fn options_that_contradict_are_refused() {
        for query in [
            "resourceVersionMatch=Exact",
            "resourceVersionMatch=Exact&resourceVersion=0",
            "resourceVersionMatch=NotOlderThan&resourceVersion=1&continue=x",
            "watch=1&sendInitialEvents=true",
            "watch=1&resourceVersionMatch=NotOlderThan",
            "sendInitialEvents=true",
            "resourceVersionMatch=Sometimes",
        ] {
            assert_eq!(Query::parse(Some(query)).list().map_err(|s| s.code), Err(422), "{query}");
        }
        assert!(Query::parse(Some("watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan")).list().is_ok());
    }
}
