use super::*;
use crate::model::Protocol;
use crate::plan::{Action, From, Front, Masquerade, Pool, Rule};

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn rule(front: Front, from: From, action: Action) -> Rule {
    Rule { front, protocol: Protocol::Tcp, from, id: 1, action }
}

fn balance(pool: Pool, endpoint: &str, masquerade: Masquerade) -> Action {
    Action::Balance { pool, endpoints: [at(endpoint)].into(), masquerade, affinity: Some(60) }
}

fn facts() -> Facts {
    Facts { node_ips: vec!["192.0.2.1".parse().unwrap(), "127.0.0.1".parse().unwrap()], ..Facts::default() }
}

fn members(parts: &Parts) -> Vec<(Set, &str)> {
    parts.members.iter().map(|(_, set, member)| (*set, member.as_str())).collect()
}

#[test]
fn a_front_is_a_server_and_in_the_sets_that_say_what_it_meets() {
    let vip = Front::Vip("10.96.0.1".parse().unwrap(), 80);
    let plan = Plan {
        rules: vec![rule(vip, From::Anyone, balance(Pool::Cluster, "10.244.0.2:8080", Masquerade::OutsidePods))],
        ..Plan::default()
    };
    let made = parts(&plan, &facts());
    let server = Server { protocol: 6, address: at("10.96.0.1:80") };
    let endpoints: [SocketAddr; 1] = [at("10.244.0.2:8080")];
    let content = Virtual { persistence: Some(60), endpoints: endpoints.into(), serving: [].into() };
    assert_eq!(made.servers, [(server, content)].into());
    assert_eq!(
        members(&made),
        [(Set::Vips, "10.96.0.1"), (Set::Fronts, "10.96.0.1,tcp:80"), (Set::Outside, "10.96.0.1,tcp:80")]
    );
    let refused = Plan { rules: vec![rule(vip, From::Anyone, Action::Reject)], ..Plan::default() };
    let made = parts(&refused, &facts());
    assert!(made.servers.is_empty());
    assert!(members(&made).contains(&(Set::Reject, "10.96.0.1,tcp:80")));
}

#[test]
fn a_node_port_answers_on_the_nodes_addresses_but_not_on_its_loopback() {
    let front = Front::NodePort { v4: true, port: 30080 };
    let plan = Plan {
        rules: vec![
            rule(front, From::Anyone, balance(Pool::Cluster, "10.244.9.2:8080", Masquerade::OutsidePods)),
            rule(front, From::Outside, Action::Drop),
        ],
        ..Plan::default()
    };
    let made = parts(&plan, &facts());
    let servers: Vec<SocketAddr> = made.servers.keys().map(|server| server.address).collect();
    assert_eq!(servers, [at("192.0.2.1:30080")]);
    let member = "192.0.2.1,tcp:30080";
    assert_eq!(members(&made), [(Set::Fronts, member), (Set::Near, member), (Set::Far, member)]);
    assert!(made.vips.is_empty());

    let local = balance(Pool::Local, "10.244.0.2:8080", Masquerade::Never);
    let mut plan = plan;
    plan.rules[1].action = local;
    let made = parts(&plan, &facts());
    assert_eq!(*made.servers.values().next().unwrap().endpoints, [at("10.244.0.2:8080")]);
}

#[test]
fn uses_are_counted() {
    let mut counts = BTreeMap::new();
    assert!(first(&mut counts, 1));
    assert!(!first(&mut counts, 1));
    assert!(!last(&mut counts, &1));
    assert!(last(&mut counts, &1));
    assert!(!last(&mut counts, &1));
    assert!(counts.is_empty());
}
