//! What the keeper is asked for, as a line.

use std::fmt;

/// Bytes of the longest line that anybody sends.
pub const LONGEST: usize = 512;

/// An order about the outputs of a container, whose id it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Open them, if they are not held already.
    Hold(String),
    /// Close them, if they are held.
    Drop(String),
}

impl Order {
    /// Reads a line without its end. An id is the name of a folder and nothing else, so that no path leads elsewhere.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let (verb, id) = std::str::from_utf8(line).ok()?.split_once(' ')?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if id.is_empty() || id.len() > LONGEST / 2 || !id.bytes().all(plain) {
            return None;
        }
        match verb {
            "hold" => Some(Self::Hold(id.to_owned())),
            "drop" => Some(Self::Drop(id.to_owned())),
            _ => None,
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hold(id) => write!(f, "hold {id}"),
            Self::Drop(id) => write!(f, "drop {id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_names_a_container_and_no_path() {
        assert_eq!(Order::parse(b"hold 0af9"), Some(Order::Hold("0af9".to_owned())));
        assert_eq!(Order::parse(b"drop a-b_c"), Some(Order::Drop("a-b_c".to_owned())));
        for line in ["", "hold", "hold ", "hold ..", "hold a/b", "hold  a", "hold a b", "keep a", "HOLD a", "hold a\0"]
        {
            assert_eq!(Order::parse(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(Order::parse(format!("hold {}", "a".repeat(LONGEST)).as_bytes()), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(id in "[a-zA-Z0-9_-]{1,200}", drop in any::<bool>()) {
            let order = if drop { Order::Drop(id) } else { Order::Hold(id) };
            prop_assert_eq!(Order::parse(order.to_string().as_bytes()), Some(order));
        }

        #[test]
        fn any_bytes_are_read_or_refused(line in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some(order) = Order::parse(&line) {
                prop_assert_eq!(order.to_string().into_bytes(), line);
            }
        }
    }
}
