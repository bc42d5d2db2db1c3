//! What every engine must do. The functions take any `Store`; the tests below run them on the embedded one.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()), expires: None }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.into() }
}

async fn write(store: &dyn Store, ops: Vec<Op>) -> Revision {
    match store.txn(Txn { compares: Vec::new(), ops }).await.unwrap() {
        Outcome::Done(revision) => revision,
        Outcome::Failed(_) => panic!("nothing was compared"),
    }
}

async fn state(store: &dyn Store, prefix: &str, at: Option<Revision>) -> Vec<(String, String)> {
    let listing = store.range(Range { prefix: prefix.into(), at, ..Range::default() }).await.unwrap();
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    listing.entries.iter().map(|e| (e.key.to_string(), text(&e.value))).collect()
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

async fn transactions(store: &dyn Store) {
    let first = write(store, vec![put("/a/1", "x"), put("/claim", "1")]).await;
    let txn = |compares, ops| Txn { compares, ops };
    let absent = txn(vec![Compare::Absent("/a/2".into()), Compare::Absent("/claim".into())], vec![put("/a/2", "y")]);
    assert_eq!(store.txn(absent).await, Ok(Outcome::Failed(1)));
    let stale = txn(vec![Compare::Modified("/a/1".into(), first + 7)], vec![delete("/a/1")]);
    assert_eq!(store.txn(stale).await, Ok(Outcome::Failed(0)));
    assert_eq!(store.revision(), first);
    let good = txn(vec![Compare::Modified("/a/1".into(), first)], vec![put("/a/1", "z"), delete("/claim")]);
    assert_eq!(store.txn(good).await, Ok(Outcome::Done(first + 1)));
    let (_, entry) = store.get("/a/1").await.unwrap();
    let entry = entry.unwrap();
    assert_eq!((entry.created, entry.modified, &entry.value[..]), (first, first + 1, &b"z"[..]));
    assert!(!store.contains("/claim"));
    assert_eq!(state(store, "/", Some(first)).await, pairs(&[("/a/1", "x"), ("/claim", "1")]));
}

async fn pages(store: &dyn Store) {
    for key in ["/p/a", "/p/b", "/p/c", "/q"] {
        write(store, vec![put(key, key)]).await;
    }
    let range = |after: Option<&str>, at| Range { prefix: "/p/".into(), after: after.map(Into::into), limit: 2, at };
    let first = store.range(range(None, None)).await.unwrap();
    assert_eq!((first.entries.len(), first.remaining), (2, 1));
    write(store, vec![delete("/p/c"), put("/p/d", "new")]).await;
    let second = store.range(range(Some("/p/b"), Some(first.revision))).await.unwrap();
    assert_eq!(second.entries.iter().map(|e| &*e.key).collect::<Vec<_>>(), ["/p/c"]);
    store.compact(first.revision + 1).await.unwrap();
    let gone = store.range(range(Some("/p/b"), Some(first.revision))).await;
    assert!(matches!(gone, Err(Error::Compacted { .. })), "{gone:?}");
    let future = store.range(range(None, Some(store.revision() + 1))).await;
    assert!(matches!(future, Err(Error::Future { .. })), "{future:?}");
}

async fn watches(store: &dyn Store) {
    let first = write(store, vec![put("/w/a", "1")]).await;
    write(store, vec![put("/elsewhere", "1")]).await;
    write(store, vec![put("/w/a", "2")]).await;
    let mut watch = store.watch("/w/".into(), first).await.unwrap();
    let last = write(store, vec![delete("/w/a"), put("/w/b", "3")]).await;
    let mut seen = Vec::new();
    while seen.last().is_none_or(|e: &Event| e.revision < last) {
        match tokio::time::timeout(Duration::from_secs(5), watch.recv()).await.unwrap().unwrap() {
            Signal::Events(events) => seen.extend(events.iter().cloned()),
            Signal::Progress(_) => {}
        }
    }
    let said: Vec<_> = seen.iter().map(|e| (&*e.key, e.value.as_deref(), e.previous.as_deref())).collect();
    let (one, two, three) = (Some(&b"1"[..]), Some(&b"2"[..]), Some(&b"3"[..]));
    assert_eq!(said, [("/w/a", two, one), ("/w/a", None, two), ("/w/b", three, None)]);
    assert_eq!((seen[1].created, seen[2].created), (first, last));
    store.progress();
    assert_eq!(watch.recv().await, Some(Signal::Progress(last)));
    store.compact(last).await.unwrap();
    assert!(matches!(store.watch("/w/".into(), first).await, Err(Error::Compacted { .. })));
}

#[tokio::test]
async fn an_engine_keeps_the_contract() {
    for test in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(dir.path()).unwrap();
        match test {
            0 => transactions(&store).await,
            1 => pages(&store).await,
            _ => watches(&store).await,
        }
    }
}

#[tokio::test]
async fn what_expires_does_so_after_a_restart_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    let event = |expires| Op::Put { key: "/e".into(), value: Bytes::from_static(b"e"), expires: Some(expires) };
    write(&store, vec![event(100)]).await;
    write(&store, vec![event(200)]).await;
    drop(store);
    let store = Embedded::open(dir.path()).unwrap();
    assert_eq!(store.expire(150).await, Ok(0));
    assert_eq!(store.expire(200).await, Ok(1));
    assert!(!store.contains("/e"));
}

#[tokio::test]
async fn a_snapshot_is_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("one")).unwrap();
    let revision = write(&store, vec![put("/a", "1")]).await;
    let file = dir.path().join("snapshot");
    assert_eq!(store.snapshot(file.clone()).await, Ok(revision));
    let seen = write(&store, vec![put("/a", "2")]).await;
    drop(store);
    stage(&file, &dir.path().join("one")).unwrap();
    let restored = Embedded::open(&dir.path().join("one")).unwrap();
    assert_eq!(state(&restored, "/", None).await, pairs(&[("/a", "1")]));
    assert_eq!(restored.revision(), seen + 1, "clients never see a revision twice");
    let resumed = restored.watch("/".into(), seen).await;
    assert!(matches!(resumed, Err(Error::Compacted { .. })), "watches begin anew");
    std::fs::write(&file, "no snapshot").unwrap();
    assert!(stage(&file, &dir.path().join("two")).is_err());
}

/// The engine panics at what it does not expect.
#[tokio::test]
async fn a_damaged_file_is_an_error_and_a_snapshot_takes_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let store = Embedded::open(&one).unwrap();
    for number in 0..40 {
        write(&store, vec![put(&format!("/{number}"), &"x".repeat(300))]).await;
    }
    let snapshot = dir.path().join("snapshot");
    store.snapshot(snapshot.clone()).await.unwrap();
    drop(store);
    let sound = std::fs::read(embedded::file(&one)).unwrap();
    std::fs::create_dir(&two).unwrap();
    let open = |at: usize| {
        let mut damaged = sound.clone();
        damaged[at] = 0;
        std::fs::write(embedded::file(&two), damaged).unwrap();
        Embedded::open(&two)
    };
    let damaged = |error: &Error| error.to_string().contains("the file is damaged");
    let at = (4096..4200).find(|at| open(*at).is_err_and(|error| damaged(&error))).expect("a byte that matters");
    std::fs::copy(&snapshot, two.join("restore.redb")).unwrap();
    assert!(open(at).unwrap().contains("/7"));
}

#[test]
fn a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(Embedded::open(dir.path()).unwrap());
    let db = redb::Database::create(embedded::file(dir.path())).unwrap();
    let write = db.begin_write().unwrap();
    write.open_table(embedded::META).unwrap().insert("schema", 99).unwrap();
    write.commit().unwrap();
    drop(db);
    assert!(matches!(Embedded::open(dir.path()), Err(Error::Schema { found: 99, .. })));
}

#[derive(Debug, Clone)]
enum Step {
    Write(Vec<(u8, Option<u8>)>),
    Compact,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => proptest::collection::vec((0..6u8, proptest::option::of(any::<u8>())), 1..4).prop_map(Step::Write),
        1 => Just(Step::Compact),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Every state since the last compaction can be read, whatever was written, compacted and reopened.
    #[test]
    fn agrees_with_a_model(steps in proptest::collection::vec(step(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut store = Embedded::open(dir.path()).unwrap();
            let mut states: Vec<BTreeMap<String, String>> = vec![BTreeMap::new()];
            for step in steps {
                match step {
                    Step::Write(changes) => {
                        let mut next = states.last().unwrap().clone();
                        let mut changed = false;
                        let ops = changes.iter().map(|(key, value)| {
                            let key = format!("/k/{key}");
                            match value {
                                Some(value) => {
                                    changed = true;
                                    next.insert(key.clone(), value.to_string());
                                    put(&key, &value.to_string())
                                }
                                None => {
                                    changed |= next.remove(&key).is_some();
                                    delete(&key)
                                }
                            }
                        });
                        let ops = ops.collect();
                        let revision = write(&store, ops).await;
                        if changed {
                            states.push(next);
                        }
                        assert_eq!(revision as usize, states.len() - 1);
                    }
                    Step::Compact => {
                        let newest = store.revision();
                        if newest > store.compacted() {
                            store.compact(newest).await.unwrap();
                        }
                    }
                    Step::Reopen => {
                        drop(store);
                        store = Embedded::open(dir.path()).unwrap();
                    }
                }
                assert_eq!(store.revision() as usize, states.len() - 1);
                for at in store.compacted()..=store.revision() {
                    let wanted: Vec<_> = states[at as usize].clone().into_iter().collect();
                    assert_eq!(state(&store, "/k/", Some(at)).await, wanted);
                }
            }
        });
    }
}

/// How many times the writer below is killed.
const KILLS: usize = 6;

/// The folder in which the writer works; set for a child process only.
const DIR: &str = "BOSUN_STORE_WRITER";

#[test]
fn a_killed_writer_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::suite::writes_until_killed", "--ignored", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let stop_at = 40 + round * 17;
        let numbers = lines.filter_map(|line| line.strip_prefix("done ").and_then(|n| n.parse::<u64>().ok()));
        for (count, number) in numbers.enumerate() {
            acknowledged = number;
            if count == stop_at {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let store = Embedded::open(dir.path()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let kept = runtime.block_on(state(&store, "/n/", None));
        for number in 1..=acknowledged {
            let key = format!("/n/{number:08}");
            assert!(kept.iter().any(|(k, v)| *k == key && *v == number.to_string()), "{key} of {acknowledged}");
        }
        assert!(acknowledged >= stop_at as u64);
    }
}

#[test]
#[ignore = "the child of the test above"]
fn writes_until_killed() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let store = Embedded::open(std::path::Path::new(&dir)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for number in store.count("/n/") as u64 + 1.. {
            write(&store, vec![put(&format!("/n/{number:08}"), &number.to_string())]).await;
            let mut out = std::io::stdout().lock();
            writeln!(out, "done {number}").and_then(|()| out.flush()).unwrap();
        }
    });
}
