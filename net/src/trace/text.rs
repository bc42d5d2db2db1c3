//! The trace for a person.

use std::fmt::Write;
use std::time::Duration;

use super::probe::{Answer, Found};
use super::{Foretold, Leg, Path};
use crate::policy::decide::Side;
use crate::policy::model::{Name, Protocol};

/// The path, what is foretold, what the probe found, and whether both agree.
pub fn text(path: &Path, found: &Found, dropped: &[(String, u64)]) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "from       {} {} on node {}", path.from, path.source, path.node);
    if let Some((name, address)) = &path.service {
        let count = match path.legs.len() {
            0 => "no ready endpoint: the connection is refused".to_owned(),
            1 => "1 ready endpoint".to_owned(),
            many => format!("{many} ready endpoints"),
        };
        let _ = writeln!(out, "Service    {name} {address}/{}, {count}", path.protocol.name());
    }
    for leg in &path.legs {
        write_leg(&mut out, leg, path.protocol);
    }
    let _ = writeln!(out, "foretold   {}", foretold(path));
    write_found(&mut out, path, found);
    out.push_str(&counted(dropped, ""));
    out
}

/// What was dropped meanwhile; `place` says where, if that is not the source's node.
pub fn counted(dropped: &[(String, u64)], place: &str) -> String {
    let line =
        |(who, packets): &(String, u64)| format!("counted    {packets} packets dropped meanwhile{place}: {who}\n");
    dropped.iter().map(line).collect()
}

fn write_leg(out: &mut String, leg: &Leg, protocol: Protocol) {
    let pod = leg.pod.as_ref().map_or("no pod of this cluster".to_owned(), Name::to_string);
    let place = if leg.node.is_empty() { String::new() } else { format!(" on node {}", leg.node) };
    let _ = writeln!(out, "to         {pod} {}/{}{place}", leg.address, protocol.name());
    let _ = writeln!(out, "  egress   {}", side(&leg.verdict.egress));
    let _ = writeln!(out, "  ingress  {}", side(&leg.verdict.ingress));
}

fn side(side: &Side) -> String {
    match side {
        Side::Open => "open: no policy isolates".into(),
        Side::Allowed { policy, rule } => format!("allowed by {policy}, rule {rule}"),
        Side::Denied { policies } => {
            let names: Vec<String> = policies.iter().map(Name::to_string).collect();
            format!("DROPPED: isolated by {}, and no rule allows it", names.join(", "))
        }
    }
}

fn foretold(path: &Path) -> String {
    match path.foretold() {
        Foretold::Passes => "passes".into(),
        Foretold::Refused => "refused: the Service has no ready endpoint".into(),
        Foretold::Some => {
            let passing = path.legs.iter().filter(|leg| leg.verdict.passes()).count();
            format!("depends on the endpoint: {passing} of {} pass", path.legs.len())
        }
        Foretold::Stopped => {
            let stops = |leg: &Leg| match (&leg.verdict.egress, &leg.verdict.ingress) {
                (Side::Denied { .. }, _) => format!("egress of {}", path.from),
                _ => format!("ingress of {}", leg.pod.as_ref().map(Name::to_string).unwrap_or_default()),
            };
            let mut who: Vec<String> = path.legs.iter().map(stops).collect();
            who.dedup();
            format!("dropped: {}", who.join(", "))
        }
    }
}

fn write_found(out: &mut String, path: &Path, found: &Found) {
    let answers = match found {
        Found::NotSent(why) => {
            let _ = writeln!(out, "probe      not sent: {why}");
            return;
        }
        Found::Answers(answers) => answers,
    };
    for (address, answer) in answers {
        let _ = writeln!(out, "probe      {address}: {}", words(answer));
        let leg = path.legs.iter().find(|leg| leg.address == *address);
        let foretold = match leg {
            Some(leg) if leg.verdict.passes() => Foretold::Passes,
            Some(_) => Foretold::Stopped,
            None => path.foretold(),
        };
        if let Some(doubt) = doubt(foretold, answer, path.protocol) {
            let _ = writeln!(out, "           {doubt}");
        }
    }
}

fn words(answer: &Answer) -> String {
    let ms = |took: &Duration| format!("{:.1} ms", took.as_secs_f64() * 1000.0);
    match answer {
        Answer::Connected(took) => format!("connected in {}", ms(took)),
        Answer::Replied(took) => format!("answered in {}", ms(took)),
        Answer::Refused(took) => format!("refused after {}", ms(took)),
        Answer::Silence => "nothing came back in 2 s".into(),
        Answer::Failed(why) => why.clone(),
    }
}

/// What to think where the probe does not bear the decision out.
fn doubt(foretold: Foretold, answer: &Answer, protocol: Protocol) -> Option<String> {
    let arrived = matches!(answer, Answer::Connected(_) | Answer::Replied(_));
    match (foretold, answer) {
        (Foretold::Passes, Answer::Refused(_)) => Some("as foretold, but nobody listens on that port".into()),
        (Foretold::Passes, Answer::Silence) if protocol == Protocol::Udp => {
            Some("no contradiction: who listens on UDP need not answer".into())
        }
        (Foretold::Passes, _) if !arrived => Some(
            "DIFFERS from what was foretold: no policy stops it; look at the routes between the nodes and at the pod"
                .into(),
        ),
        (Foretold::Stopped, Answer::Connected(_) | Answer::Replied(_) | Answer::Refused(_)) => Some(
            "DIFFERS from what was foretold: the rules are not (yet) what the policies say; is the net daemon of each node up?"
                .into(),
        ),
        (Foretold::Refused, _) if arrived => Some("DIFFERS from what was foretold: somebody answers there".into()),
        _ => None,
    }
}
