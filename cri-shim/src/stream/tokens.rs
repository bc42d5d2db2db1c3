//! Tokens by which a prepared request is fetched, once and soon. Pure; time and randomness come in as values.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a token is good.
pub const LIFE: Duration = Duration::from_secs(60);
/// Requests that wait to be fetched.
pub const WAITING: usize = 1000;
/// Bytes of randomness in a token.
pub const RANDOM: usize = 16;

/// Prepared requests by token, oldest first.
#[derive(Debug)]
pub struct Tokens<T> {
    waiting: VecDeque<(String, T, Instant)>,
}

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new() }
    }
}

impl<T> Tokens<T> {
    /// A token for `request`; nothing where too many wait already.
    pub fn issue(&mut self, request: T, random: [u8; RANDOM], now: Instant) -> Option<String> {
        self.expire(now);
        if self.waiting.len() >= WAITING {
            return None;
        }
        let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        self.waiting.push_back((token.clone(), request, now + LIFE));
        Some(token)
    }

    /// The request of a token, which is good for nothing then.
    pub fn redeem(&mut self, token: &str, now: Instant) -> Option<T> {
        self.expire(now);
        let at = self.waiting.iter().position(|(known, ..)| known == token)?;
        self.waiting.remove(at).map(|(_, request, _)| request)
    }

    fn expire(&mut self, now: Instant) {
        while self.waiting.front().is_some_and(|(.., expires)| *expires <= now) {
            self.waiting.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(n: usize) -> [u8; RANDOM] {
        let mut random = [0; RANDOM];
        random[..8].copy_from_slice(&n.to_le_bytes());
        random
    }

    #[test]
    fn a_token_is_good_once_and_for_a_minute() {
        let (mut tokens, start) = (Tokens::default(), Instant::now());
        let (a, b) = (tokens.issue("a", random(10), start).unwrap(), tokens.issue("b", random(11), start).unwrap());
        assert_eq!(a, "0a000000000000000000000000000000");
        assert_eq!(tokens.redeem(&a, start), Some("a"));
        assert_eq!(tokens.redeem(&a, start), None);
        assert_eq!(tokens.redeem(&b, start + LIFE), None);
        assert_eq!(tokens.redeem("", start), None);
    }

    #[test]
    fn only_so_many_wait() {
        let (mut tokens, start) = (Tokens::default(), Instant::now());
        for n in 0..WAITING {
            assert!(tokens.issue(n, random(n), start).is_some());
        }
        assert_eq!(tokens.issue(0, random(WAITING), start), None);
        assert!(tokens.issue(0, random(WAITING), start + LIFE).is_some());
    }
}
