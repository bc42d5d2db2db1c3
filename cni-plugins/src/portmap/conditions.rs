//! `conditionsV4` and `conditionsV6`: what a packet has to be besides. Written for iptables, as words that begin with
//! a dash, or for nftables; here they are nft's either way.

use api::cni::{Error, code};

use crate::listing::Family;

/// # Errors
/// Names what is not understood.
pub fn in_nft(key: &str, family: Family, words: &[String], backend: &str) -> Result<String, Error> {
    let Some(first) = words.first().filter(|word| !word.is_empty()) else { return Ok(String::new()) };
    let for_iptables = first.starts_with(['-', '!']);
    if (for_iptables && backend == "nftables") || (!for_iptables && backend == "iptables") {
        return Err(Error::config(format!("{key} is not written for the backend {backend}")));
    }
    match for_iptables {
        true => translate(key, family, words),
        false => match words.iter().any(|word| word.contains([';', '\n', '#'])) {
            true => Err(Error::config(format!("{key} is more than one condition of nftables"))),
            false => Ok(words.join(" ")),
        },
    }
}

fn translate(key: &str, family: Family, words: &[String]) -> Result<String, Error> {
    let mut words = words.iter().map(String::as_str).peekable();
    let mut found = Vec::new();
    let mut negated = false;
    while let Some(word) = words.next() {
        let field = match word {
            "!" => {
                negated = !negated;
                continue;
            }
            "-s" | "--src" | "--source" => format!("{} saddr", family.name()),
            "-d" | "--dst" | "--destination" => format!("{} daddr", family.name()),
            "-i" | "--in-interface" => "iifname".to_owned(),
            other => {
                let text = format!("portmap does not support {other:?} in {key}: write the condition for nftables");
                return Err(Error::new(code::UNSUPPORTED_FIELD, text));
            }
        };
        negated |= words.next_if_eq(&"!").is_some();
        let value = words.next().ok_or_else(|| Error::config(format!("{key} ends after {word}")))?;
        let operator = if negated { "!= " } else { "" };
        found.push(format!("{field} {operator}{}", operand(key, &field, value)?));
        negated = false;
    }
    Ok(found.join(" "))
}

fn operand(key: &str, field: &str, value: &str) -> Result<String, Error> {
    if field == "iifname" {
        // iptables' plus is nft's star: every interface that begins so.
        let name = value.strip_suffix('+').map_or(value.to_owned(), |stem| format!("{stem}*"));
        return match name.contains(['"', '\\', '\n']) {
            true => Err(Error::config(format!("{key} has an invalid interface {value:?}"))),
            false => Ok(format!("\"{name}\"")),
        };
    }
    let networks = value.split(',').map(|text| text.trim().parse::<ipnetwork::IpNetwork>());
    let networks = networks.collect::<Result<Vec<_>, _>>();
    let networks =
        networks.map_err(|error| Error::config(format!("{key} has an invalid network {value:?}: {error}")))?;
    let texts: Vec<String> = networks.iter().map(|net| format!("{}/{}", net.network(), net.prefix())).collect();
    Ok(format!("{{ {} }}", texts.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str], backend: &str) -> Result<String, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        in_nft("conditionsV4", Family::V4, &words, backend).map_err(|error| error.msg)
    }

    #[test]
    fn iptables_words_become_nfts() {
        let words = ["!", "-d", "192.0.2.0/24,198.51.100.7", "-i", "eth+", "-s", "!", "10.0.0.0/8"];
        let nft = "ip daddr != { 192.0.2.0/24, 198.51.100.7/32 } iifname \"eth*\" ip saddr != { 10.0.0.0/8 }";
        assert_eq!(read(&words, ""), Ok(nft.into()));
        assert_eq!(read(&["ip", "daddr", "192.0.2.1"], "nftables"), Ok("ip daddr 192.0.2.1".into()));
        assert_eq!(read(&[], "iptables"), Ok(String::new()));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (words, backend, text) in [
            (
                &["-m", "set"][..],
                "",
                "portmap does not support \"-m\" in conditionsV4: write the condition for nftables",
            ),
            (&["-d"], "", "conditionsV4 ends after -d"),
            (&["-d", "1.2.3.4"], "nftables", "conditionsV4 is not written for the backend nftables"),
            (&["ip", "daddr", "1.2.3.4;", "drop"], "", "conditionsV4 is more than one condition of nftables"),
        ] {
            assert_eq!(read(words, backend), Err(text.into()));
        }
    }
}
