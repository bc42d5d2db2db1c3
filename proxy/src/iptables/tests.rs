use std::sync::Arc;

use kernel::iptables::Fake;

use super::*;
use crate::examples::{service, slice};
use crate::model::PodSource;
use crate::sync::{Change, Proxier, Step};

/// A fake that the test keeps a hand on.
struct Hand(Arc<Fake>);

impl Iptables for Hand {
    fn restore(&self, family: iptables::Family, script: &str) -> Result<(), iptables::Error> {
        self.0.restore(family, script)
    }
    fn save(&self, family: iptables::Family, table: &str) -> Result<String, iptables::Error> {
        self.0.save(family, table)
    }
    fn chain(&self, family: iptables::Family, table: &str, chain: &str) -> Result<String, iptables::Error> {
        self.0.chain(family, table, chain)
    }
}

fn facts() -> Facts {
    Facts { pods: vec![PodSource::Range("10.0.0.0/16".parse().unwrap())], ..Facts::default() }
}

fn proxier(fake: &Arc<Fake>) -> Proxier {
    Proxier::new(facts(), Box::new(Chains::new(Box::new(Hand(fake.clone())))), None)
}

fn last(fake: &Fake) -> Vec<String> {
    fake.applied.lock().unwrap().last().unwrap().lines().map(str::to_owned).collect()
}

fn chains(fake: &Fake) -> Vec<String> {
    fake.tables.lock().unwrap().values().flat_map(|chains| chains.keys().cloned()).collect()
}

#[test]
fn a_change_writes_the_chains_that_it_concerns() {
    let fake = Arc::new(Fake::default());
    let mut proxier = proxier(&fake);
    for (name, ip) in [("a/one", "10.96.0.1"), ("a/two", "10.96.0.2"), ("a/far", "10.96.7.1")] {
        proxier.note(Change::Service(name.into(), Some(service(ip))));
    }
    let endpoints = |ips: &[&str]| Change::Slice("a/one".into(), "s".into(), Some(slice(ips)));
    proxier.note(endpoints(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]));
    assert_eq!(proxier.sync().unwrap(), Step::Full { services: 3 });

    proxier.note(endpoints(&["10.0.0.1", "10.0.0.2"]));
    assert_eq!(proxier.sync().unwrap(), Step::Partial { services: 1 });
    let pool = chains(&fake).into_iter().find(|name| name.starts_with("BOSUN-SVC-")).unwrap();
    assert_eq!(
        last(&fake),
        [
            "*nat".to_owned(),
            format!(":{pool} - [0:0]"),
            format!(
                "-A {pool} -p tcp -m statistic --mode random --probability 0.5000000000 -j DNAT --to-destination 10.0.0.1:8080"
            ),
            format!("-A {pool} -p tcp -j DNAT --to-destination 10.0.0.2:8080"),
            "COMMIT".to_owned(),
        ]
    );

    proxier.note(endpoints(&[]));
    proxier.sync().unwrap();
    let said = last(&fake).join("\n");
    assert!(
        said.contains("-A BOSUN-REFUSE -d 10.96.0.1 -p tcp -m tcp --dport 80 -j REJECT --reject-with tcp-reset"),
        "{said}"
    );
    assert!(said.contains("-D BOSUN-HAIRPIN -s 10.0.0.1/32"), "{said}");
    assert!(said.contains(&format!("-X {pool}")), "{said}");
}

#[test]
fn nothing_is_left_in_the_end_and_what_an_earlier_process_left_is_swept() {
    let fake = Arc::new(Fake::default());
    fake.restore(iptables::Family::V4, "*nat\n:OTHERS - [0:0]\n-I PREROUTING -j OTHERS\nCOMMIT\n").unwrap();
    let before = fake.tables.lock().unwrap().clone();
    let mut one = proxier(&fake);
    one.note(Change::Service("a/one".into(), Some(service("10.96.0.1"))));
    one.note(Change::Slice("a/one".into(), "s".into(), Some(slice(&["10.0.0.1"]))));
    one.sync().unwrap();
    let mut two = proxier(&fake);
    two.sync().unwrap();
    let left = chains(&fake);
    assert!(!left.iter().any(|name| name.starts_with("BOSUN-SVC-") || name.starts_with("BOSUN-NET-")), "{left:?}");
    Chains::new(Box::new(Hand(fake.clone()))).remove().unwrap();
    let mut after = fake.tables.lock().unwrap().clone();
    // The kernel's own chains stay, empty; here inserting made them.
    after.values_mut().for_each(|chains| chains.retain(|_, rules| !rules.is_empty()));
    after.retain(|_, chains| !chains.is_empty());
    let mut before = before;
    before.values_mut().for_each(|chains| chains.retain(|_, rules| !rules.is_empty()));
    assert_eq!(after, before);
}
