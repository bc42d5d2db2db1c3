use super::super::spec::fixture::pod;
use super::super::view::Sandbox;
use super::*;
use serde_json::{Value, json};

const NOW: i64 = 1_000_000_000_000_000;

fn sandbox(ready: bool) -> Sandbox {
    Sandbox { id: "s0".into(), ready, ..Sandbox::default() }
}

fn container(name: &str, phase: ContainerPhase, exit_code: i32) -> Running {
    Running {
        id: format!("{name}-id"),
        name: name.into(),
        sandbox: "s0".into(),
        attempt: 0,
        phase,
        image: String::new(),
        image_ref: String::new(),
        created_at: 1,
        started_at: 1,
        finished_at: NOW - 1_000_000_000,
        exit_code,
        reason: String::new(),
        message: String::new(),
        hash: hash(&Container { name: name.into(), image: Some("i".into()), ..Container::default() }),
        log_path: Default::default(),
    }
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(NOW.unsigned_abs())
}

fn steps(spec: Value, containers: Vec<Running>) -> Vec<Action> {
    steps_with(spec, containers, &Verdicts::default(), &RestartBackOff::default())
}

fn steps_with(spec: Value, containers: Vec<Running>, verdicts: &Verdicts, back_off: &RestartBackOff) -> Vec<Action> {
    let view = View { sandboxes: vec![sandbox(true)], containers };
    decide(Facts { pod: &pod(spec), view: &view, verdicts, back_off, now: now() })
}

fn start(name: &str, attempt: u32) -> Action {
    Action::Start { name: name.into(), attempt }
}

use ContainerPhase::{Exited, Running as Runs};

fn one(policy: &str) -> Value {
    json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}]})
}

#[test]
fn a_new_pod_gets_a_sandbox_and_a_dead_one_is_cleared_first() {
    let facts = |view: &View| {
        let (verdicts, back_off) = (Verdicts::default(), RestartBackOff::default());
        decide(Facts { pod: &pod(one("Always")), view, verdicts: &verdicts, back_off: &back_off, now: now() })
    };
    assert_eq!(facts(&View::default()), [Action::CreateSandbox { attempt: 0 }]);
    let dead = View { sandboxes: vec![sandbox(false)], containers: vec![container("a", Exited, 1)] };
    assert_eq!(facts(&dead), [Action::StopSandboxes, Action::CreateSandbox { attempt: 1 }]);
}

#[test]
fn a_pod_that_runs_once_gets_no_second_sandbox() {
    let view = View { sandboxes: vec![sandbox(false)], containers: vec![container("a", Exited, 1)] };
    let (verdicts, back_off) = (Verdicts::default(), RestartBackOff::default());
    let facts = Facts { pod: &pod(one("Never")), view: &view, verdicts: &verdicts, back_off: &back_off, now: now() };
    assert_eq!(decide(facts), [Action::Finish]);
}

#[test]
fn restart_policies() {
    let after = |policy, code| steps(one(policy), vec![container("a", Exited, code)]);
    assert_eq!(after("Always", 0), [start("a", 1)]);
    assert_eq!(after("OnFailure", 1), [start("a", 1)]);
    assert_eq!(after("OnFailure", 0), [Action::Finish]);
    assert_eq!(after("Never", 1), [Action::Finish]);
    assert_eq!(steps(one("Never"), vec![container("a", Runs, 0)]), []);
    assert_eq!(steps(one("Never"), vec![]), [start("a", 0)]);
}

#[test]
fn a_crash_soon_after_the_last_start_waits() {
    let mut back_off = RestartBackOff::default();
    back_off.restarted("a", now() - Duration::from_secs(2));
    let ended = vec![container("a", Exited, 1)];
    let held = Action::HoldOff { name: "a".into(), remaining: Duration::from_secs(9) };
    assert_eq!(steps_with(one("Always"), ended, &Verdicts::default(), &back_off), [held]);
}

#[test]
fn a_failed_probe_or_a_new_image_kills() {
    let killed = |why| vec![Action::Kill { id: "a-id".into(), name: "a".into(), why }];
    let run = |verdicts: &Verdicts| {
        steps_with(one("Always"), vec![container("a", Runs, 0)], verdicts, &RestartBackOff::default())
    };
    assert_eq!(run(&Verdicts::default().with_liveness("a-id", false)), killed(KillReason::Liveness));
    assert_eq!(run(&Verdicts::default().with_startup("a-id", false)), killed(KillReason::Startup));
    let changed = json!({"containers": [{"name": "a", "image": "other"}]});
    assert_eq!(steps(changed, vec![container("a", Runs, 0)]), killed(KillReason::Changed));
}

fn with_inits(policy: &str) -> Value {
    json!({
        "restartPolicy": policy,
        "initContainers": [
            {"name": "one", "image": "i"},
            {"name": "side", "image": "i", "restartPolicy": "Always", "startupProbe": {"tcpSocket": {"port": 1}}},
            {"name": "two", "image": "i"},
        ],
        "containers": [{"name": "a", "image": "i"}],
    })
}

#[test]
fn init_containers_run_in_order() {
    assert_eq!(steps(with_inits("Always"), vec![]), [start("one", 0)]);
    assert_eq!(steps(with_inits("Always"), vec![container("one", Runs, 0)]), []);
    assert_eq!(steps(with_inits("Always"), vec![container("one", Exited, 0)]), [start("side", 0)]);
    assert_eq!(steps(with_inits("Always"), vec![container("one", Exited, 3)]), [start("one", 1)]);
    assert_eq!(steps(with_inits("Never"), vec![container("one", Exited, 3)]), [Action::Finish]);
}

#[test]
fn a_sidecar_lets_the_next_start_once_its_startup_probe_passed_and_is_restarted() {
    let side = || vec![container("side", Runs, 0), container("one", Exited, 0)];
    assert_eq!(steps(with_inits("Never"), side()), []);
    let passed = Verdicts::default().with_startup("side-id", true);
    assert_eq!(steps_with(with_inits("Never"), side(), &passed, &RestartBackOff::default()), [start("two", 0)]);
    let main = vec![container("a", Runs, 0), container("side", Exited, 1), container("two", Exited, 0)];
    assert_eq!(steps(with_inits("Never"), main), [start("side", 1)]);
}

#[test]
fn sidecars_do_not_keep_a_finished_pod_alive() {
    let ended = vec![container("a", Exited, 0), container("side", Exited, 1), container("two", Exited, 0)];
    assert_eq!(steps(with_inits("OnFailure"), ended), [Action::Finish]);
}

#[test]
fn a_restart_rule_overrides_never() {
    let spec = |code| {
        json!({"restartPolicy": "Never", "containers": [{
            "name": "a", "image": "i", "restartPolicy": "Never",
            "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [code]}}],
        }]})
    };
    assert_eq!(steps(spec(42), vec![container("a", Exited, 42)]), [start("a", 1)]);
    assert_eq!(steps(spec(42), vec![container("a", Exited, 1)]), [Action::Finish]);
}
