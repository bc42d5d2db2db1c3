//! What a URL's path means.

use crate::registry::{Registry, Resource, Subresource};

/// A path, understood.
#[derive(Clone)]
pub enum Route {
    Object(Place),
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/GROUP`
    Group(String),
    /// `/api/v1`, `/apis/GROUP/VERSION`
    Version {
        group: String,
        version: String,
    },
    /// `/apis/apiextensions.k8s.io/v1/customresourcedefinitions`
    CustomResources,
    /// `/openapi/v2`
    OpenApiV2,
    /// `/openapi/v3`
    OpenApiIndex,
    /// What follows `/openapi/v3/`.
    OpenApi(String),
    /// `healthz`, `livez` or `readyz`, and the check behind it.
    Health {
        endpoint: &'static str,
        check: String,
    },
    /// `/version`
    ServerVersion,
    /// `/bosun/store`
    Store,
    /// `/metrics`
    Metrics,
    /// `/`
    Root,
    Unknown,
}

/// Objects of a kind, one of them, or a part of one.
#[derive(Clone)]
pub struct Place {
    pub resource: &'static Resource,
    /// Empty for a kind without, and for all namespaces.
    pub namespace: String,
    /// Empty for a collection.
    pub name: String,
    pub subresource: Option<Subresource>,
    /// What follows in the path behind a subresource.
    pub rest: String,
}

/// Understands a path. `decoded` segments: percent escapes are taken out one segment at a time.
pub fn route(registry: &Registry, path: &str) -> Route {
    let segments: Vec<String> = path.split('/').filter(|s| !s.is_empty()).map(super::query::unescape).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    match segments.as_slice() {
        [] => Route::Root,
        ["api"] => Route::CoreVersions,
        ["apis"] => Route::Groups,
        ["api", version] => Route::Version { group: String::new(), version: (*version).into() },
        ["apis", group] => Route::Group((*group).into()),
        ["apis", group, version] => Route::Version { group: (*group).into(), version: (*version).into() },
        ["api", version, rest @ ..] => object(registry, "", version, rest),
        ["apis", "apiextensions.k8s.io", "v1", "customresourcedefinitions"] => Route::CustomResources,
        ["apis", group, version, rest @ ..] => object(registry, group, version, rest),
        ["openapi", "v2"] => Route::OpenApiV2,
        ["openapi", "v3"] => Route::OpenApiIndex,
        ["openapi", "v3", rest @ ..] => Route::OpenApi(rest.join("/")),
        ["healthz", check @ ..] => Route::Health { endpoint: "healthz", check: check.join("/") },
        ["livez", check @ ..] => Route::Health { endpoint: "livez", check: check.join("/") },
        ["readyz", check @ ..] => Route::Health { endpoint: "readyz", check: check.join("/") },
        ["version"] => Route::ServerVersion,
        ["bosun", "store"] => Route::Store,
        ["metrics"] => Route::Metrics,
        _ => Route::Unknown,
    }
}

fn object(registry: &Registry, group: &str, version: &str, rest: &[&str]) -> Route {
    let (namespace, rest) = match rest {
        // A namespace's own parts have the form of what lies in a namespace.
        ["namespaces", _, "status" | "finalize", ..] => ("", rest),
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        _ => ("", rest),
    };
    let Some((plural, rest)) = rest.split_first() else { return Route::Unknown };
    let Some(resource) = registry.find(group, version, plural) else { return Route::Unknown };
    let mut place = Place {
        resource,
        namespace: namespace.into(),
        name: rest.first().map_or(String::new(), |name| (*name).into()),
        subresource: None,
        rest: rest.get(2..).unwrap_or_default().join("/"),
    };
    if let Some(part) = rest.get(1) {
        place.subresource = Subresource::parse(part).filter(|s| resource.subresources.contains(s));
        if place.subresource.is_none() {
            return Route::Unknown;
        }
    }
    if !place.rest.is_empty() && place.subresource != Some(Subresource::Proxy) {
        return Route::Unknown;
    }
    if resource.namespaced == namespace.is_empty() && !(resource.namespaced && place.name.is_empty()) {
        return Route::Unknown;
    }
    Route::Object(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Plain;

    const fn row(plural: &'static str, namespaced: bool, subresources: &'static [Subresource]) -> Resource {
        Resource {
            group: "",
            version: "v1",
            kind: "X",
            plural,
            singular: "x",
            short_names: &[],
            categories: &[],
            namespaced,
            subresources,
            columns: &[],
            selectable: &[],
            expires_after: None,
            virtual_only: false,
            strategy: &Plain,
        }
    }

    static PODS: Resource = row("pods", true, &[Subresource::Log, Subresource::Proxy]);
    static NAMESPACES: Resource = row("namespaces", false, &[Subresource::Finalize]);

    fn said(path: &str) -> Option<(&'static str, String, String, Option<Subresource>, String)> {
        match route(&Registry::new(vec![&PODS, &NAMESPACES]), path) {
            Route::Object(p) => Some((p.resource.plural, p.namespace, p.name, p.subresource, p.rest)),
            _ => None,
        }
    }

    #[test]
    fn paths_name_objects() {
        let cases = [
            ("/api/v1/pods", Some(("pods", "", "", None, ""))),
            ("/api/v1/namespaces/a/pods/", Some(("pods", "a", "", None, ""))),
            ("/api/v1/namespaces/a/pods/b", Some(("pods", "a", "b", None, ""))),
            ("/api/v1/namespaces/a/pods/b/log", Some(("pods", "a", "b", Some(Subresource::Log), ""))),
            ("/api/v1/namespaces/a/pods/b/proxy/x/y", Some(("pods", "a", "b", Some(Subresource::Proxy), "x/y"))),
            ("/api/v1/namespaces/a", Some(("namespaces", "", "a", None, ""))),
            ("/api/v1/namespaces/a/finalize", Some(("namespaces", "", "a", Some(Subresource::Finalize), ""))),
            ("/api/v1/namespaces/a/pods/b/log/x", None),
            ("/api/v1/pods/b", None),
            ("/api/v1/namespaces/a/namespaces", None),
            ("/api/v1/nodes", None),
        ];
        for (path, wanted) in cases {
            let wanted = wanted.map(|(r, ns, n, s, rest)| (r, ns.to_owned(), n.to_owned(), s, rest.to_owned()));
            assert_eq!(said(path), wanted, "{path}");
        }
    }
}
