//! A document parses or is refused, within bounds; what parses can be written and reads the same.
#![no_main]

use api::yaml;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(parsed) = yaml::parse(bytes) else { return };
    let text = yaml::write(&parsed.value).expect("a value can be written");
    assert_eq!(yaml::parse(text.as_bytes()).expect("what was written parses").value, parsed.value);
});
