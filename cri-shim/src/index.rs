//! What is known by id, or by the beginning of an id as people type it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::error::{Error, Result};

/// Objects by their full id. Never held across a wait.
#[derive(Debug)]
pub struct Index<T> {
    kind: &'static str,
    by_id: RwLock<BTreeMap<String, Arc<T>>>,
}

impl<T> Index<T> {
    /// `kind` names the objects in errors: `pod sandbox`, `container`.
    pub fn new(kind: &'static str) -> Self {
        Self { kind, by_id: RwLock::default() }
    }

    /// By id, or by a beginning that only one id has.
    ///
    /// # Errors
    /// `NotFound`, or `Ambiguous` for a beginning that several ids have.
    pub fn find(&self, id: &str) -> Result<Arc<T>> {
        let by_id = self.by_id.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = by_id.get(id) {
            return Ok(found.clone());
        }
        let not_found = Error::NotFound { kind: self.kind, id: id.to_owned() };
        if id.is_empty() {
            return Err(not_found);
        }
        let mut matching = by_id.range(id.to_owned()..).take_while(|(full, _)| full.starts_with(id)).map(|(_, t)| t);
        let first = matching.next().ok_or(not_found)?;
        match matching.count() {
            0 => Ok(first.clone()),
            more => Err(Error::Ambiguous { kind: self.kind, id: id.to_owned(), count: more + 1 }),
        }
    }

    /// As `find`, where nothing there is no error: for what is to be idempotent.
    ///
    /// # Errors
    /// `Ambiguous`.
    pub fn find_maybe(&self, id: &str) -> Result<Option<Arc<T>>> {
        match self.find(id) {
            Err(error) if error.is_not_found() => Ok(None),
            other => other.map(Some),
        }
    }

    pub fn get(&self, id: &str) -> Option<Arc<T>> {
        self.by_id.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    pub fn insert(&self, id: &str, object: Arc<T>) {
        self.by_id.write().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), object);
    }

    pub fn remove(&self, id: &str) {
        self.by_id.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// All of them, by id.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.by_id.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_finds_the_only_one_it_fits() {
        let index = Index::new("container");
        for id in ["abc1", "abc2", "abd"] {
            index.insert(id, Arc::new(id));
        }
        assert_eq!(*index.find("abd").unwrap(), "abd");
        assert_eq!(*index.find("abc2").unwrap(), "abc2");
        assert!(matches!(index.find("abc"), Err(Error::Ambiguous { count: 2, .. })));
        assert!(index.find("").unwrap_err().is_not_found());
        assert!(index.find_maybe("x").unwrap().is_none());
        index.remove("abc1");
        assert_eq!(*index.find("abc").unwrap(), "abc2");
    }
}
