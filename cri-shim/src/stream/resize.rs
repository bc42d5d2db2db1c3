//! The resize stream of a terminal: JSON objects one after the other, `{"Width":80,"Height":24}`. Pure.
//! Source: k8s.io/client-go/tools/remotecommand, TerminalSize.

use serde::Deserialize;

/// More than a size needs.
const LONGEST: usize = 1024;

#[derive(Deserialize)]
struct TerminalSize {
    #[serde(alias = "width", default)]
    #[serde(rename = "Width")]
    width: u16,
    #[serde(alias = "height", default)]
    #[serde(rename = "Height")]
    height: u16,
}

/// Takes the bytes as they come, and gives the sizes in them.
#[derive(Debug, Default)]
pub struct Sizes {
    bytes: Vec<u8>,
}

impl Sizes {
    /// The sizes, width and height in characters, that `bytes` complete.
    ///
    /// # Errors
    /// Where they are no sizes. The stream is of no more use then.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<(u16, u16)>, serde_json::Error> {
        self.bytes.extend_from_slice(bytes);
        let mut parsed = serde_json::Deserializer::from_slice(&self.bytes).into_iter::<TerminalSize>();
        let (mut sizes, mut whole) = (Vec::new(), 0);
        while let Some(next) = parsed.next() {
            match next {
                Ok(size) => sizes.push((size.width, size.height)),
                Err(error) if error.is_eof() && self.bytes.len() - whole <= LONGEST => break,
                Err(error) => return Err(error),
            }
            whole = parsed.byte_offset();
        }
        self.bytes.drain(..whole);
        Ok(sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_come_one_after_the_other_and_in_pieces() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.feed(b"{\"Width\":80,\"Height\":24}\n{\"Wid").unwrap(), [(80, 24)]);
        assert_eq!(sizes.feed(b"th\":132,\"Height\":43}").unwrap(), [(132, 43)]);
        assert_eq!(sizes.feed(b"{\"width\":1,\"height\":2}{}").unwrap(), [(1, 2), (0, 0)]);
        assert_eq!(sizes.feed(b"").unwrap(), []);
    }

    #[test]
    fn what_is_no_size_is_refused_and_not_kept() {
        assert!(Sizes::default().feed(b"{\"Width\":70000,\"Height\":24}").is_err());
        assert!(Sizes::default().feed(b"\x04").is_err());
        assert!(Sizes::default().feed(format!("{{\"{}", "x".repeat(LONGEST)).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8)) {
            let mut sizes = Sizes::default();
            for piece in pieces {
                if sizes.feed(&piece).is_err() {
                    break;
                }
                prop_assert!(sizes.bytes.len() <= LONGEST);
            }
        }

        #[test]
        fn any_sizes_in_any_pieces(expected in proptest::collection::vec(any::<(u16, u16)>(), 0..6), step in 1usize..20) {
            let text: String =
                expected.iter().map(|(width, height)| format!("{{\"Width\":{width},\"Height\":{height}}}\n")).collect();
            let mut sizes = Sizes::default();
            let mut got = Vec::new();
            for piece in text.as_bytes().chunks(step) {
                got.extend(sizes.feed(piece).unwrap());
            }
            prop_assert_eq!(got, expected);
        }
    }
}
