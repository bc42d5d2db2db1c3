//! The tables. Their content follows the roles that upstream creates at its start, under their names.

use crate::identity::{Attributes, User};

/// What may be done with resources; `*` stands for all, and a subresource is written `pods/status`.
#[derive(Debug)]
pub struct Rule {
    pub verbs: &'static [&'static str],
    pub groups: &'static [&'static str],
    pub resources: &'static [&'static str],
    /// All names where empty.
    pub names: &'static [&'static str],
    /// All namespaces where none.
    pub namespace: Option<&'static str>,
}

impl Rule {
    pub fn matches(&self, asked: &Attributes) -> bool {
        let resource = match asked.subresource.as_str() {
            "" => asked.resource.clone(),
            subresource => format!("{}/{subresource}", asked.resource),
        };
        has(self.verbs, &asked.verb)
            && has(self.groups, &asked.group)
            && has(self.resources, &resource)
            && (self.names.is_empty() || self.names.contains(&asked.name.as_str()))
            && self.namespace.is_none_or(|namespace| namespace == asked.namespace)
    }
}

/// What may be done with paths that are no resources; a path ends in `*` or stands for itself.
#[derive(Debug)]
pub struct NonResourceRule {
    pub verbs: &'static [&'static str],
    pub paths: &'static [&'static str],
}

impl NonResourceRule {
    pub fn matches(&self, asked: &Attributes) -> bool {
        has(self.verbs, &asked.verb)
            && self.paths.iter().any(|path| match path.strip_suffix('*') {
                Some(prefix) => asked.path.starts_with(prefix),
                None => asked.path == *path,
            })
    }
}

fn has(all: &[&str], one: &str) -> bool {
    all.iter().any(|item| *item == "*" || *item == one)
}

/// Rules under a name.
pub struct Role {
    pub name: &'static str,
    pub resource: &'static [Rule],
    pub non_resource: &'static [NonResourceRule],
}

/// The roles of a user; `system:masters` is not among them.
pub fn roles(user: &User) -> Vec<&'static Role> {
    let mut roles: Vec<&'static Role> = Vec::new();
    if user.in_group("system:authenticated") {
        roles.push(&KNOWN);
    } else if user.in_group("system:unauthenticated") {
        roles.push(&UNKNOWN);
    }
    if super::node_of(user).is_some() {
        roles.push(&NODE);
    }
    match user.name.as_str() {
        "system:kube-scheduler" => roles.push(&SCHEDULER),
        "system:kube-controller-manager" => roles.push(&CONTROLLERS),
        "system:kube-proxy" => roles.push(&PROXY),
        "system:bosun-net" => roles.push(&NET),
        name if is_controller(name) => roles.push(&CONTROLLERS),
        _ => {}
    }
    roles
}

/// Upstream's controller manager acts as one service account for each controller.
fn is_controller(user: &str) -> bool {
    user.strip_prefix("system:serviceaccount:kube-system:").is_some_and(|name| CONTROLLER_ACCOUNTS.contains(&name))
}

const CONTROLLER_ACCOUNTS: &[&str] = &[
    "attachdetach-controller",
    "bootstrap-signer",
    "certificate-controller",
    "clusterrole-aggregation-controller",
    "cronjob-controller",
    "daemon-set-controller",
    "deployment-controller",
    "device-taint-eviction-controller",
    "disruption-controller",
    "endpoint-controller",
    "endpointslice-controller",
    "endpointslicemirroring-controller",
    "ephemeral-volume-controller",
    "expand-controller",
    "generic-garbage-collector",
    "horizontal-pod-autoscaler",
    "job-controller",
    "legacy-service-account-token-cleaner",
    "namespace-controller",
    "node-controller",
    "persistent-volume-binder",
    "pod-garbage-collector",
    "podcertificaterequestcleaner",
    "podgroup-protection-controller",
    "pv-protection-controller",
    "pvc-protection-controller",
    "replicaset-controller",
    "replication-controller",
    "resource-claim-controller",
    "resourcequota-controller",
    "root-ca-cert-publisher",
    "route-controller",
    "selinux-warning-controller",
    "service-account-controller",
    "service-cidrs-controller",
    "service-controller",
    "statefulset-controller",
    "storage-version-garbage-collector",
    "storage-version-migrator-controller",
    "token-cleaner",
    "ttl-after-finished-controller",
    "ttl-controller",
    "validatingadmissionpolicy-status-controller",
    "volumeattributesclass-protection-controller",
];

const READ: &[&str] = &["get", "list", "watch"];
const CREATE: &[&str] = &["create"];
const GET: &[&str] = &["get"];
const UPDATE: &[&str] = &["update", "patch"];
const WRITE: &[&str] = &["create", "update", "patch"];
const CORE: &[&str] = &[""];
const EVENTS: &[&str] = &["", "events.k8s.io"];
const ALL: &[&str] = &["*"];

const fn rule(
    verbs: &'static [&'static str],
    groups: &'static [&'static str],
    resources: &'static [&'static str],
) -> Rule {
    Rule { verbs, groups, resources, names: &[], namespace: None }
}

const fn named(rule: Rule, names: &'static [&'static str]) -> Rule {
    Rule { names, ..rule }
}

const fn within(rule: Rule, namespace: &'static str) -> Rule {
    Rule { namespace: Some(namespace), ..rule }
}

/// Only to be listed: `system:masters` is not asked for rules.
pub static ADMIN: Role = Role {
    name: "cluster-admin",
    resource: &[rule(ALL, ALL, ALL)],
    non_resource: &[NonResourceRule { verbs: ALL, paths: &["*"] }],
};

/// `system:basic-user`, `system:discovery`, `system:public-info-viewer` and the issuer's discovery.
static KNOWN: Role = Role {
    name: "system:authenticated",
    resource: &[
        rule(CREATE, &["authorization.k8s.io"], &["selfsubjectaccessreviews", "selfsubjectrulesreviews"]),
        rule(CREATE, &["authentication.k8s.io"], &["selfsubjectreviews"]),
    ],
    non_resource: &[
        NonResourceRule { verbs: GET, paths: HEALTH },
        NonResourceRule {
            verbs: GET,
            paths: &[
                "/api",
                "/api/*",
                "/apis",
                "/apis/*",
                "/openapi",
                "/openapi/*",
                "/.well-known/openid-configuration",
                "/.well-known/openid-configuration/",
                "/openid/v1/jwks",
                "/openid/v1/jwks/",
            ],
        },
    ],
};

static UNKNOWN: Role = Role {
    name: "system:public-info-viewer",
    resource: &[],
    non_resource: &[NonResourceRule { verbs: GET, paths: HEALTH }],
};

const HEALTH: &[&str] =
    &["/healthz", "/healthz/*", "/livez", "/livez/*", "/readyz", "/readyz/*", "/version", "/version/"];

static NODE: Role = Role {
    name: "system:node",
    resource: &[
        rule(CREATE, &["authentication.k8s.io"], &["tokenreviews"]),
        rule(CREATE, &["authorization.k8s.io"], &["subjectaccessreviews", "localsubjectaccessreviews"]),
        rule(READ, CORE, &["services", "endpoints", "configmaps", "secrets", "serviceaccounts", "nodes", "pods"]),
        rule(WRITE, CORE, &["nodes"]),
        rule(UPDATE, CORE, &["nodes/status", "pods/status", "persistentvolumeclaims/status"]),
        rule(&["create", "delete"], CORE, &["pods"]),
        rule(CREATE, CORE, &["pods/eviction", "serviceaccounts/token"]),
        rule(GET, CORE, &["persistentvolumeclaims", "persistentvolumes", "persistentvolumeclaims/status"]),
        rule(WRITE, EVENTS, &["events"]),
        within(
            rule(&["get", "create", "update", "patch", "delete"], &["coordination.k8s.io"], &["leases"]),
            "kube-node-lease",
        ),
        rule(
            &["create", "get", "list", "watch"],
            &["certificates.k8s.io"],
            &["certificatesigningrequests", "podcertificaterequests"],
        ),
        rule(READ, &["certificates.k8s.io"], &["clustertrustbundles"]),
        rule(READ, &["storage.k8s.io"], &["csidrivers", "volumeattachments"]),
        rule(&["get", "create", "update", "patch", "delete"], &["storage.k8s.io"], &["csinodes", "csinodes/status"]),
        rule(READ, &["node.k8s.io"], &["runtimeclasses"]),
        rule(GET, &["resource.k8s.io"], &["resourceclaims"]),
        rule(&["deletecollection"], &["resource.k8s.io"], &["resourceslices"]),
    ],
    non_resource: &[],
};

static SCHEDULER: Role = Role {
    name: "system:kube-scheduler",
    resource: &[
        rule(WRITE, EVENTS, &["events"]),
        rule(CREATE, &["coordination.k8s.io"], &["leases"]),
        named(rule(&["get", "update", "list", "watch"], &["coordination.k8s.io"], &["leases"]), &["kube-scheduler"]),
        rule(
            READ,
            CORE,
            &[
                "nodes",
                "pods",
                "services",
                "replicationcontrollers",
                "persistentvolumeclaims",
                "persistentvolumes",
                "namespaces",
            ],
        ),
        rule(&["delete"], CORE, &["pods"]),
        rule(CREATE, CORE, &["pods/binding", "bindings"]),
        rule(UPDATE, CORE, &["pods/status"]),
        rule(READ, &["apps"], &["replicasets", "statefulsets"]),
        rule(READ, &["policy"], &["poddisruptionbudgets"]),
        rule(
            READ,
            &["storage.k8s.io"],
            &["csinodes", "csidrivers", "csistoragecapacities", "storageclasses", "volumeattachments"],
        ),
        rule(READ, &["resource.k8s.io", "scheduling.k8s.io"], ALL),
        rule(CREATE, &["authentication.k8s.io"], &["tokenreviews"]),
        rule(CREATE, &["authorization.k8s.io"], &["subjectaccessreviews"]),
        within(rule(READ, CORE, &["configmaps"]), "kube-system"),
    ],
    non_resource: &[],
};

/// The controllers' roles in one: bosun's controller manager acts under one identity.
static CONTROLLERS: Role = Role {
    name: "system:kube-controller-manager",
    resource: &[
        // The garbage collector and the namespace controller meet every kind.
        rule(&["get", "list", "watch", "update", "patch", "delete", "deletecollection"], ALL, ALL),
        rule(WRITE, EVENTS, &["events"]),
        rule(
            CREATE,
            CORE,
            &[
                "configmaps",
                "endpoints",
                "persistentvolumeclaims",
                "persistentvolumes",
                "pods",
                "pods/eviction",
                "secrets",
                "serviceaccounts",
                "serviceaccounts/token",
            ],
        ),
        rule(
            CREATE,
            &["apps", "batch", "coordination.k8s.io", "discovery.k8s.io", "resource.k8s.io"],
            &[
                "controllerrevisions",
                "endpointslices",
                "endpointslices/restricted",
                "jobs",
                "leases",
                "replicasets",
                "resourceclaims",
            ],
        ),
        rule(CREATE, &["networking.k8s.io"], &["servicecidrs", "ipaddresses"]),
        rule(CREATE, &["authentication.k8s.io"], &["tokenreviews"]),
        rule(CREATE, &["authorization.k8s.io"], &["subjectaccessreviews"]),
    ],
    non_resource: &[],
};

static PROXY: Role = Role {
    name: "system:node-proxier",
    resource: &[
        rule(&["list", "watch"], CORE, &["services", "endpoints"]),
        rule(READ, CORE, &["nodes"]),
        rule(WRITE, EVENTS, &["events"]),
        rule(&["list", "watch"], &["discovery.k8s.io"], &["endpointslices"]),
        rule(&["list", "watch"], &["networking.k8s.io"], &["servicecidrs"]),
    ],
    non_resource: &[],
};

/// The net daemon's. Its annotations on nodes are patched, and the condition NetworkUnavailable in their status; an
/// administrator's settings are in one config map, and the passwords that it names in a secret beside it.
static NET: Role = Role {
    name: "system:bosun-net",
    resource: &[
        rule(READ, CORE, &["nodes", "pods", "namespaces", "services"]),
        rule(UPDATE, CORE, &["nodes", "nodes/status"]),
        rule(READ, &["discovery.k8s.io"], &["endpointslices"]),
        rule(READ, &["networking.k8s.io"], &["networkpolicies"]),
        within(named(rule(READ, CORE, &["configmaps", "secrets"]), &["bosun-net"]), "kube-system"),
        rule(WRITE, EVENTS, &["events"]),
    ],
    non_resource: &[],
};
