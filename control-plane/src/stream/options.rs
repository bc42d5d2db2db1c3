//! What a stream's query asks for, and the query that a kubelet understands.

use streams::remote::StreamType;

/// The parameters of a query, in their order.
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: Option<&str>) -> Self {
        Self(form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect())
    }

    /// The first value; empty where there is none.
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A flag that is there is set, unless its value denies it.
    pub fn flag(&self, name: &str) -> bool {
        self.all(name).next().is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }

    /// The ports of a port-forward over WebSocket channels, for the kubelet.
    pub fn ports(&self) -> String {
        let ports: Vec<&str> = self.all("ports").collect();
        if ports.is_empty() { String::new() } else { encode(&[("port", &ports.join(","))]) }
    }
}

/// A query with its question mark; nothing where there are no pairs.
pub fn encode(pairs: &[(&str, &str)]) -> String {
    let text = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    if text.is_empty() { text } else { format!("?{text}") }
}

/// The streams of an exec or attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Remote {
    pub fn of(query: &Query) -> Self {
        let [stdin, stdout, stderr, tty] = ["stdin", "stdout", "stderr", "tty"].map(|name| query.flag(name));
        Self { stdin, stdout, stderr, tty }
    }

    /// The kubelet's query for the same.
    pub fn query(self, asked: &Query) -> String {
        let flags = [("input", self.stdin), ("output", self.stdout), ("error", self.stderr), ("tty", self.tty)];
        let mut pairs: Vec<(&str, &str)> = flags.iter().filter(|(_, set)| *set).map(|(name, _)| (*name, "1")).collect();
        pairs.extend(asked.all("command").map(|word| ("command", word)));
        encode(&pairs)
    }

    /// The streams to open towards the kubelet, in the order of upstream's client. A terminal has no stderr of its own.
    pub fn streams(self) -> Vec<StreamType> {
        let wanted = [
            (StreamType::Error, true),
            (StreamType::Stdin, self.stdin),
            (StreamType::Stdout, self.stdout),
            (StreamType::Stderr, self.stderr && !self.tty),
            (StreamType::Resize, self.tty),
        ];
        wanted.into_iter().filter(|(_, wanted)| *wanted).map(|(kind, _)| kind).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_become_the_kubelets() {
        let query =
            Query::parse(Some("container=a&command=sh&command=-c&command=echo+a%26b&stdin=true&stdout=1&tty=false"));
        let remote = Remote::of(&query);
        assert_eq!(remote, Remote { stdin: true, stdout: true, stderr: false, tty: false });
        assert_eq!(remote.query(&query), "?input=1&output=1&command=sh&command=-c&command=echo+a%26b");
        assert_eq!(Query::parse(Some("ports=80&ports=443")).ports(), "?port=80%2C443");
        assert_eq!(Query::parse(None).ports(), "");
    }

    #[test]
    fn a_terminal_has_one_output() {
        let remote = Remote { stdin: true, stdout: true, stderr: true, tty: true };
        use StreamType::{Error, Resize, Stdin, Stdout};
        assert_eq!(remote.streams(), [Error, Stdin, Stdout, Resize]);
    }
}
