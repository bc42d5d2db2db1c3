//! Who may do what: a fixed answer until RBAC comes.
//!
//! Administrators (`system:masters`) may all; nodes, scheduler, controllers and proxy what upstream's roles of their
//! names give them; everyone who is known may discover the API and ask about himself; anyone else nothing.

mod rules;

use futures::future::BoxFuture;

use api::status::Status;

pub use rules::{NonResourceRule, Rule};

use crate::identity::{Attributes, User};
use crate::ports::{Authorizer, Decision};
use crate::server::Server;

/// The group that may all.
pub const MASTERS: &str = "system:masters";

/// The authorizer without state.
pub struct Fixed;

impl Authorizer for Fixed {
    fn authorize<'a>(
        &'a self,
        _server: &'a Server,
        user: &'a User,
        attributes: &'a Attributes,
    ) -> BoxFuture<'a, Decision> {
        Box::pin(std::future::ready(decide(user, attributes)))
    }
}

/// The answer, from the tables alone.
pub fn decide(user: &User, attributes: &Attributes) -> Decision {
    if user.in_group(MASTERS) {
        return Decision::Allow(String::new());
    }
    let role = rules::roles(user).into_iter().find(|role| match attributes.resource.is_empty() {
        true => role.non_resource.iter().any(|rule| rule.matches(attributes)),
        false => role.resource.iter().any(|rule| rule.matches(attributes)),
    });
    match role {
        Some(role) => Decision::Allow(format!("allowed by the fixed role {:?}", role.name)),
        None => Decision::Deny(String::new()),
    }
}

/// All that a user may, for SelfSubjectRulesReviews: rules for resources and for other paths.
pub fn rules_of(user: &User) -> (Vec<&'static Rule>, Vec<&'static NonResourceRule>) {
    let mut roles = rules::roles(user);
    if user.in_group(MASTERS) {
        roles.push(&rules::ADMIN);
    }
    let resource = roles.iter().flat_map(|role| role.resource).collect();
    (resource, roles.iter().flat_map(|role| role.non_resource).collect())
}

/// The node that a user is the identity of (`system:node:NAME` in `system:nodes`).
pub fn node_of(user: &User) -> Option<&str> {
    user.name.strip_prefix("system:node:").filter(|_| user.in_group("system:nodes"))
}

/// 403 in upstream's words. `reason` is the authorizer's, and may be empty.
pub fn forbidden(user: &User, attributes: &Attributes, reason: &str) -> Status {
    let (who, verb) = (&user.name, &attributes.verb);
    let tail = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    if attributes.resource.is_empty() {
        let path = &attributes.path;
        return Status::new(403, "Forbidden", format!("forbidden: User {who:?} cannot {verb} path {path:?}{tail}"));
    }
    let what = match attributes.subresource.as_str() {
        "" => attributes.resource.clone(),
        subresource => format!("{}/{subresource}", attributes.resource),
    };
    let place = match attributes.namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    let group = &attributes.group;
    let resource = match group.as_str() {
        "" => attributes.resource.clone(),
        group => format!("{}.{group}", attributes.resource),
    };
    let why = format!("User {who:?} cannot {verb} resource {what:?} in API group {group:?} {place}{tail}");
    Status::forbidden(&resource, &attributes.name, &why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, groups: &[&str]) -> User {
        let groups = groups.iter().chain(&["system:authenticated"]).map(|g| (*g).to_owned()).collect();
        User { name: name.into(), groups, ..User::default() }
    }

    /// `verb group/resource[/subresource] [namespace]`
    fn may(user: &User, question: &str) -> bool {
        let mut words = question.split(' ');
        let verb = words.next().unwrap().to_owned();
        let mut path = words.next().unwrap().split('/').map(str::to_owned);
        let attributes = Attributes {
            verb,
            group: path.next().unwrap(),
            resource: path.next().unwrap(),
            subresource: path.next().unwrap_or_default(),
            namespace: words.next().unwrap_or_default().into(),
            ..Attributes::default()
        };
        matches!(decide(user, &attributes), Decision::Allow(_))
    }

    fn may_get_path(user: &User, path: &str) -> bool {
        let attributes = Attributes { verb: "get".into(), path: path.into(), ..Attributes::default() };
        matches!(decide(user, &attributes), Decision::Allow(_))
    }

    #[test]
    fn each_identity_has_its_part() {
        let admin = user("kubernetes-admin", &["system:masters"]);
        let node = user("system:node:n1", &["system:nodes"]);
        let scheduler = user("system:kube-scheduler", &[]);
        let controllers = user("system:kube-controller-manager", &[]);
        let proxy = user("system:kube-proxy", &[]);
        let net = user("system:bosun-net", &[]);
        let pod = user("system:serviceaccount:default:default", &["system:serviceaccounts"]);
        let deployments = user("system:serviceaccount:kube-system:deployment-controller", &["system:serviceaccounts"]);
        let cases: &[(&User, &str, bool)] = &[
            (&admin, "delete /nodes", true),
            (&admin, "escalate rbac.authorization.k8s.io/clusterroles", true),
            (&node, "create /nodes", true),
            (&node, "patch /nodes/status", true),
            (&node, "delete /nodes", false),
            (&node, "watch /pods", true),
            (&node, "patch /pods/status default", true),
            (&node, "create /pods/exec default", false),
            (&node, "create /serviceaccounts/token default", true),
            (&node, "update coordination.k8s.io/leases kube-node-lease", true),
            (&node, "update coordination.k8s.io/leases kube-system", false),
            (&node, "create apps/deployments default", false),
            (&node, "create authentication.k8s.io/tokenreviews", true),
            (&scheduler, "create /pods/binding default", true),
            (&scheduler, "create /pods default", false),
            (&scheduler, "create events.k8s.io/events default", true),
            (&controllers, "create /pods default", true),
            (&controllers, "update /namespaces/finalize", true),
            (&controllers, "deletecollection apps/deployments default", true),
            (&controllers, "create /pods/exec default", false),
            (&deployments, "create apps/replicasets default", true),
            (&proxy, "watch discovery.k8s.io/endpointslices", true),
            (&proxy, "list /secrets", false),
            (&net, "watch networking.k8s.io/networkpolicies", true),
            (&net, "patch /nodes/status", true),
            (&net, "get /configmaps default", false),
            (&net, "list /secrets", false),
            (&pod, "list /pods default", false),
            (&pod, "create authorization.k8s.io/selfsubjectaccessreviews", true),
            (&pod, "create authorization.k8s.io/subjectaccessreviews", false),
        ];
        let wrong: Vec<_> = cases.iter().filter(|(user, question, wanted)| may(user, question) != *wanted).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn a_nodes_name_alone_is_nothing() {
        assert!(!may(&user("system:node:n1", &[]), "create /nodes"));
        assert!(!may(&user("mallory", &["system:nodes"]), "create /nodes"));
        assert_eq!(node_of(&user("system:node:n1", &["system:nodes"])), Some("n1"));
    }

    #[test]
    fn the_known_discover_and_the_unknown_see_health() {
        let known = user("jane", &[]);
        for path in ["/api", "/apis/apps/v1", "/openapi/v3", "/version", "/healthz", "/livez/ping", "/openid/v1/jwks"] {
            assert!(may_get_path(&known, path), "{path}");
        }
        assert!(!may_get_path(&known, "/metrics"));
        let unknown = User { groups: vec!["system:unauthenticated".into()], ..User::default() };
        assert!(may_get_path(&unknown, "/readyz"));
        assert!(!may_get_path(&unknown, "/api"));
    }

    #[test]
    fn refusals_speak_as_upstream_does() {
        let attributes = |name: &str, namespace: &str| Attributes {
            verb: "list".into(),
            group: "apps".into(),
            resource: "deployments".into(),
            name: name.into(),
            namespace: namespace.into(),
            ..Attributes::default()
        };
        assert_eq!(
            forbidden(&user("x", &[]), &attributes("", "default"), "").message,
            "deployments.apps is forbidden: User \"x\" cannot list resource \"deployments\" in API group \"apps\" in \
             the namespace \"default\""
        );
        assert_eq!(
            forbidden(&user("x", &[]), &attributes("a", ""), "no").message,
            "deployments.apps \"a\" is forbidden: User \"x\" cannot list resource \"deployments\" in API group \"apps\" \
             at the cluster scope: no"
        );
        let path = Attributes { verb: "get".into(), path: "/metrics".into(), ..Attributes::default() };
        assert_eq!(forbidden(&user("x", &[]), &path, "").message, "forbidden: User \"x\" cannot get path \"/metrics\"");
    }
}
