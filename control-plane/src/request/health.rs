//! Whether the server works, and which version it is.

use http::Response;
use serde_json::json;

use super::{Asked, body};
use crate::ports::Body;

/// The version of Kubernetes whose API is served. Clients compare theirs with it.
const VERSION: &str = "v1.37.1";

/// `/version`
pub(super) fn version() -> Vec<u8> {
    let value = json!({
        "major": "1", "minor": "37", "gitVersion": VERSION, "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
        "emulationMajor": "1", "emulationMinor": "37", "minCompatibilityMajor": "1", "minCompatibilityMinor": "36",
    });
    value.to_string().into_bytes()
}

/// `/healthz`, `/livez`, `/readyz`, and single checks below them.
pub(super) async fn answer(asked: &Asked<'_>, endpoint: &str, check: &str) -> Response<Body> {
    let server = asked.server;
    let store = server.store.get("/health").await.map(|_| ()).map_err(|e| e.to_string());
    let mut checks: Vec<(&str, Result<(), String>)> = vec![("ping", Ok(())), ("etcd", store)];
    if endpoint == "readyz" {
        let ready = server.ready.load(std::sync::atomic::Ordering::Acquire);
        checks.push(("poststarthook/bootstrap", if ready { Ok(()) } else { Err("not finished".into()) }));
        let going = server.stop.is_stopped();
        checks.push(("shutdown", if going { Err("the server is shutting down".into()) } else { Ok(()) }));
    }
    if !check.is_empty() {
        checks.retain(|(name, _)| *name == check);
        if checks.is_empty() {
            return body::answer(404, "text/plain; charset=utf-8", "404 page not found\n");
        }
    }
    let excluded = asked.query.get("exclude");
    checks.retain(|(name, _)| *name != excluded);
    let failed = checks.iter().any(|(_, result)| result.is_err());
    let verbose = failed || asked.query.flag("verbose").unwrap_or(false);
    let code = if failed { 500 } else { 200 };
    if !verbose {
        return body::answer(code, "text/plain; charset=utf-8", "ok");
    }
    let mut lines: Vec<String> = checks
        .iter()
        .map(|(name, result)| match result {
            Ok(()) => format!("[+]{name} ok"),
            Err(why) => format!("[-]{name} failed: {why}"),
        })
        .collect();
    lines.push(format!("{endpoint} check {}", if failed { "failed" } else { "passed" }));
    body::answer(code, "text/plain; charset=utf-8", lines.join("\n") + "\n")
}
