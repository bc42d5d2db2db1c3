//! Selectors parse or are refused; their canonical form means the same.
#![no_main]

use api::{fields, labels, quantity::Quantity};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(selector) = labels::Selector::parse(text) {
        assert_eq!(labels::Selector::parse(&selector.to_string()).expect("canonical form parses"), selector);
    }
    if let Ok(selector) = fields::Selector::parse(text) {
        assert_eq!(fields::Selector::parse(&selector.to_string()).expect("canonical form parses"), selector);
    }
    if let Ok(quantity) = text.parse::<Quantity>() {
        assert_eq!(quantity.to_string().parse::<Quantity>().expect("canonical form parses"), quantity);
    }
});
