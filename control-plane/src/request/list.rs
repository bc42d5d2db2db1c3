//! Lists: a consistent part of a kind, whole or page by page.

use api::status::Status;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::query::{ListQuery, VersionMatch};
use crate::registry::Resource;
use crate::server::{Server, decode, from_store};
use crate::store::{self, Entry, Range, Revision};
use crate::watch::Selection;

/// How many entries are read at a time where a selector drops some of them.
const CHUNK: usize = 500;

/// Objects of a kind at one revision.
pub struct Page {
    pub revision: Revision,
    pub entries: Vec<Entry>,
    /// Where the next page begins.
    pub token: Option<String>,
    pub remaining: Option<usize>,
}

impl Page {
    /// The list's metadata.
    pub fn metadata(&self) -> Value {
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if let Some(token) = &self.token {
            metadata["continue"] = token.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        metadata
    }
}

/// What a `continue` parameter holds. Opaque to clients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Token {
    v: String,
    /// -1: the state of the first page is gone, go on with the newest.
    rv: i64,
    start: String,
}

const TOKEN_VERSION: &str = "meta.k8s.io/v1";

impl Token {
    fn encode(revision: i64, start: &str) -> String {
        let token = Self { v: TOKEN_VERSION.into(), rv: revision, start: start.into() };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    }

    pub(super) fn decode(text: &str) -> Result<Self, Status> {
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok();
        bytes
            .and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok())
            .filter(|token| token.v == TOKEN_VERSION && !token.start.is_empty())
            .ok_or_else(|| Status::bad_request("continue key is not valid: encoded start key or version is not known"))
    }
}

/// Which state a list shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Newest,
    /// The newest, if it is not older than this.
    NotOlderThan(Revision),
    Exactly(Revision),
}

fn state(query: &ListQuery) -> Result<State, Status> {
    if query.resource_version.is_empty() || query.resource_version == "0" {
        return Ok(State::Newest);
    }
    let revision = parse_version(&query.resource_version)?;
    Ok(match query.version_match {
        Some(VersionMatch::Exact) => State::Exactly(revision),
        Some(VersionMatch::NotOlderThan) => State::NotOlderThan(revision),
        None if query.limit > 0 => State::Exactly(revision),
        None => State::NotOlderThan(revision),
    })
}

/// # Errors
/// 400 for what is no revision.
pub fn parse_version(text: &str) -> Result<Revision, Status> {
    text.parse().map_err(|_| {
        Status::bad_request(format!(
            "invalid resource version {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

/// 504, with which a client waits and asks again.
pub fn too_large_version(wanted: Revision, current: Revision) -> Status {
    let mut status = Status::new(504, "Timeout", format!("Too large resource version: {wanted}, current: {current}"));
    status.details = json!({
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    });
    status
}

impl Server {
    /// The objects of a selection as a list's query wants them.
    ///
    /// # Errors
    /// 400 for a bad token or version, 410 for a state that is gone, 504 for one that is to come.
    pub(super) async fn page(
        &self,
        resource: &Resource,
        selection: &Selection,
        query: &ListQuery,
    ) -> Result<Page, Status> {
        let from = self.origin(selection, query)?;
        self.collect(resource, selection, query, from).await
    }

    /// The state that a list shows (the newest where none), and the key behind which it begins.
    pub(super) fn origin(
        &self,
        selection: &Selection,
        query: &ListQuery,
    ) -> Result<(Option<Revision>, Option<String>), Status> {
        if !query.token.is_empty() {
            if !query.resource_version.is_empty() && query.resource_version != "0" {
                return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
            }
            let token = Token::decode(&query.token)?;
            return Ok((Revision::try_from(token.rv).ok(), Some(selection.scope.clone() + &token.start)));
        }
        match state(query)? {
            State::Newest => Ok((None, None)),
            State::NotOlderThan(wanted) => match self.store.revision() {
                current if wanted > current => Err(too_large_version(wanted, current)),
                _ => Ok((None, None)),
            },
            State::Exactly(revision) => Ok((Some(revision), None)),
        }
    }

    /// As much as `query.limit` says from there on.
    pub(super) async fn collect(
        &self,
        resource: &Resource,
        selection: &Selection,
        query: &ListQuery,
        (mut at, mut after): (Option<Revision>, Option<String>),
    ) -> Result<Page, Status> {
        let all = selection.is_everything();
        let wanted = if query.limit == 0 { usize::MAX } else { query.limit };
        let limit = match (query.limit, all) {
            (0, _) => 0,
            (limit, true) => limit,
            (limit, false) => limit.max(CHUNK),
        };
        let mut page = Page { revision: 0, entries: Vec::new(), token: None, remaining: None };
        loop {
            let prefix = selection.scope.clone();
            let range = Range { prefix, after: after.clone(), limit, at };
            let listing = self.store.range(range).await.map_err(|e| gone(e, query, after.as_deref(), selection))?;
            page.revision = listing.revision;
            at = Some(listing.revision);
            after = listing.entries.last().map(|entry| entry.key.to_string());
            let mut entries = listing.entries.into_iter();
            let mut unread = listing.remaining;
            if all {
                page.entries.extend(entries);
            } else {
                for entry in entries.by_ref() {
                    let object = decode(resource, &entry)?;
                    if selection.matches(&object) {
                        page.entries.push(entry);
                        if page.entries.len() == wanted {
                            break;
                        }
                    }
                }
                unread += entries.len();
            }
            if unread == 0 {
                return Ok(page);
            }
            if page.entries.len() >= wanted {
                let last = page.entries.last().map_or("", |entry| &entry.key);
                let start = last.strip_prefix(&selection.scope).unwrap_or(last);
                page.token = Some(Token::encode(page.revision as i64, start));
                page.remaining = all.then_some(unread);
                return Ok(page);
            }
        }
    }
}

/// The answer where the store has not the state that a list wants.
fn gone(error: store::Error, query: &ListQuery, after: Option<&str>, selection: &Selection) -> Status {
    match error {
        store::Error::Future { wanted, current } => too_large_version(wanted, current),
        store::Error::Compacted { .. } if query.token.is_empty() => {
            Status::expired("The resourceVersion for the provided list is too old.")
        }
        store::Error::Compacted { .. } => {
            let start = after.and_then(|key| key.strip_prefix(&selection.scope)).unwrap_or_default();
            let mut status = Status::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new \
                 list without the continue parameter, or use the continue token in this response to retrieve the \
                 remainder of the results. Continuing with the provided token results in an inconsistent list - \
                 objects that were created, modified, or deleted between the time the first chunk was returned and \
                 now may show up in the list.",
            );
            status.list_metadata = json!({"continue": Token::encode(-1, start)});
            status
        }
        other => from_store(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_with_a_limit_is_exact() {
        let query = |version: &str, limit, version_match| ListQuery {
            resource_version: version.into(),
            limit,
            version_match,
            ..ListQuery::default()
        };
        assert_eq!(state(&query("", 5, None)), Ok(State::Newest));
        assert_eq!(state(&query("0", 5, None)), Ok(State::Newest));
        assert_eq!(state(&query("7", 0, None)), Ok(State::NotOlderThan(7)));
        assert_eq!(state(&query("7", 5, None)), Ok(State::Exactly(7)));
        assert_eq!(state(&query("7", 5, Some(VersionMatch::NotOlderThan))), Ok(State::NotOlderThan(7)));
        assert_eq!(state(&query("x", 0, None)).map_err(|s| s.code), Err(400));
    }

    #[test]
    fn a_token_comes_back() {
        let token = Token::decode(&Token::encode(7, "ns/name")).unwrap();
        assert_eq!((token.rv, token.start.as_str()), (7, "ns/name"));
        assert!(Token::decode("nonsense").is_err());
    }
}
