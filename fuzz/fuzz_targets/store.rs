//! A store's file, damaged anywhere, opens or is refused with an error. Each four bytes of the input damage one place: where,
//! and what stands there then.
#![no_main]

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::LazyLock;

use control_plane::store::{Embedded, Op, Store, Txn};

/// A folder, and the file of a store that holds something.
static SOUND: LazyLock<(PathBuf, Vec<u8>)> = LazyLock::new(|| {
    // libFuzzer's hook ends the program at any panic. The engine's are caught; one that comes out here ends it nevertheless.
    drop(std::panic::take_hook());
    std::panic::set_hook(Box::new(|_| {}));
    let folder = std::env::temp_dir().join(format!("bosun-fuzz-store-{}", std::process::id()));
    let store = Embedded::open(&folder).expect("a new store");
    for number in 0..40 {
        let put =
            Op::Put { key: format!("/registry/pods/default/{number}"), value: vec![b'x'; 300].into(), expires: None };
        futures::executor::block_on(store.txn(Txn { compares: Vec::new(), ops: vec![put] })).expect("a write");
    }
    drop(store);
    let file = std::fs::read(folder.join("store.redb")).expect("the store's file");
    (folder, file)
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (folder, sound) = &*SOUND;
    let mut file = sound.clone();
    for damage in bytes.as_chunks::<4>().0 {
        let at = usize::from(damage[0]) << 16 | usize::from(damage[1]) << 8 | usize::from(damage[2]);
        let at = at % file.len();
        file[at] = damage[3];
    }
    std::fs::write(folder.join("store.redb"), &file).expect("the store's file");
    let opened = Embedded::open(folder);
    // Damage that opening does not meet is the engine's to meet later: at a write, or when it closes the file.
    let _ = std::panic::catch_unwind(AssertUnwindSafe(|| drop(opened)));
});
