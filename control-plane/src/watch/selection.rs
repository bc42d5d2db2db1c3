//! Which objects a list or a watch is about, and what a change means to it.

use std::borrow::Cow;

use api::status::Status;
use api::{fields, labels};
use serde_json::Value;

use super::Kind;
use crate::registry::kinds::selected;
use crate::registry::{Resource, events};

/// The objects that a client asked for.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// What their keys begin with.
    pub scope: String,
    /// Where the path or a field selector names the one object.
    pub name: Option<String>,
    pub labels: labels::Selector,
    pub fields: fields::Selector,
    /// Whether objects come in the newer form of Events.
    is_events: bool,
}

impl Selection {
    /// Understands both selectors of a request for objects under `scope`.
    ///
    /// # Errors
    /// 400 where one cannot be understood or names a field that cannot be selected on.
    pub fn parse(resource: &Resource, scope: String, labels: &str, fields: &str) -> Result<Self, Status> {
        let labels = labels::Selector::parse(labels)
            .map_err(|e| Status::bad_request(format!("unable to parse requirement: {e}")))?;
        let fields = fields::Selector::parse(fields).map_err(|e| Status::bad_request(e.to_string()))?;
        for term in &fields.terms {
            let known = match term.field.as_str() {
                "metadata.name" => true,
                "metadata.namespace" => resource.namespaced,
                field => resource.selectable.contains(&field),
            };
            if !known {
                let message = format!("field label not supported: {}", term.field);
                let message = match resource.selectable.is_empty() {
                    true => format!(
                        "{:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                        term.field
                    ),
                    false => message,
                };
                return Err(Status::bad_request(message));
            }
        }
        let name = fields.required("metadata.name").map(str::to_owned);
        Ok(Self { scope, name, labels, fields, is_events: resource.group == events::GROUP })
    }

    /// Whether the scope alone decides.
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    pub fn matches(&self, object: &Value) -> bool {
        let terms = &self.fields.terms;
        if !self.labels.matches(api::meta::labels(object)) {
            return false;
        }
        // Selectors name the fields of Events as `v1` does.
        let object = match (self.is_events, terms.is_empty()) {
            (true, false) => Cow::Owned(events::to_core(object)),
            _ => Cow::Borrowed(object),
        };
        terms.iter().all(|term| (selected(&object, &term.field) == term.value) == term.equal)
    }

    /// What a change is to this selection: the event, and whether it shows the state before. `now` and `before` are
    /// the states that there are.
    pub fn sees(&self, now: Option<&Value>, before: Option<&Value>) -> Option<(Kind, bool)> {
        let is = now.is_some_and(|object| self.matches(object));
        let was = before.is_some_and(|object| self.matches(object));
        match (was, is) {
            (false, true) => Some((Kind::Added, false)),
            (true, true) => Some((Kind::Modified, false)),
            (true, false) => Some((Kind::Deleted, true)),
            (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn selection() -> Selection {
        Selection {
            labels: labels::Selector::parse("app=web").unwrap(),
            fields: fields::Selector::parse("spec.nodeName=n1").unwrap(),
            ..Selection::default()
        }
    }

    #[test]
    fn leaving_a_selector_is_a_deletion_with_the_state_before() {
        let inside = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"nodeName": "n1"}});
        let outside = json!({"metadata": {"labels": {"app": "db"}}, "spec": {"nodeName": "n1"}});
        let sees = |now, before| selection().sees(now, before);
        assert_eq!(sees(Some(&inside), Some(&outside)), Some((Kind::Added, false)));
        assert_eq!(sees(Some(&inside), Some(&inside)), Some((Kind::Modified, false)));
        assert_eq!(sees(Some(&outside), Some(&inside)), Some((Kind::Deleted, true)));
        assert_eq!(sees(None, Some(&inside)), Some((Kind::Deleted, true)));
        assert_eq!(sees(None, Some(&outside)), None);
    }
}
