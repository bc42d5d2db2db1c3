//! A container's limits in its cgroup. Sources: CRI's LinuxContainerResources, the OCI runtime spec's config-linux.md,
//! KEP-1287 (in-place update).

use cri::v1::{HugepageLimit, LinuxContainerResources};
use oci_spec::runtime::{LinuxCpu, LinuxDeviceCgroup, LinuxHugepageLimit, LinuxMemory, LinuxResources, Spec};

use super::{HostFacts, SpecError};

/// No device is allowed but those that a rule after this one, or the runtime's own short list, allows.
pub(crate) fn denied_devices() -> LinuxDeviceCgroup {
    let mut all = LinuxDeviceCgroup::default();
    all.set_allow(false).set_access(Some("rwm".into()));
    all
}

pub(super) fn of(wanted: Option<&LinuxContainerResources>, host: &HostFacts) -> Result<LinuxResources, SpecError> {
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(vec![denied_devices()]));
    if let Some(wanted) = wanted {
        apply(&mut resources, wanted, host)?;
    }
    Ok(resources)
}

/// A container's spec after an update, and what its running task is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    pub spec: Spec,
    pub resources: LinuxResources,
}

/// What `wanted` makes of a container's limits. A field that is zero or empty leaves its limit as it is.
///
/// # Errors
/// Where this machine cannot limit what is asked for, or the spec has no Linux section.
pub fn update_resources(
    current: &Spec,
    wanted: &LinuxContainerResources,
    host: &HostFacts,
) -> Result<Update, SpecError> {
    let mut spec = current.clone();
    let linux = spec.linux_mut().as_mut().ok_or(SpecError::Incomplete("Linux section"))?;
    let resources = linux.resources_mut().get_or_insert_default();
    apply(resources, wanted, host)?;
    let mut told = resources.clone();
    // Devices do not change, and a runtime told of them would set their rules anew.
    told.set_devices(None);
    Ok(Update { spec, resources: told })
}

fn apply(resources: &mut LinuxResources, wanted: &LinuxContainerResources, host: &HostFacts) -> Result<(), SpecError> {
    apply_cpu(resources.cpu_mut().get_or_insert_default(), wanted);
    apply_memory(resources.memory_mut().get_or_insert_default(), wanted, host);
    // Kubelet names every page size of the machine, most with a limit of zero. Without the controller nothing limits.
    if host.hugetlb {
        for limit in &wanted.hugepage_limits {
            apply_hugepages(resources.hugepage_limits_mut().get_or_insert_default(), limit);
        }
    }
    if !wanted.unified.is_empty() {
        if !host.cgroup_v2 {
            let mut names: Vec<&str> = wanted.unified.keys().map(String::as_str).collect();
            names.sort_unstable();
            return Err(SpecError::UnifiedWithoutV2(names.join(", ")));
        }
        let unified = resources.unified_mut().get_or_insert_default();
        unified.extend(wanted.unified.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    Ok(())
}

fn apply_cpu(cpu: &mut LinuxCpu, wanted: &LinuxContainerResources) {
    let positive = |value: i64| u64::try_from(value).ok().filter(|v| *v > 0);
    if let Some(period) = positive(wanted.cpu_period) {
        cpu.set_period(Some(period));
    }
    if let Some(shares) = positive(wanted.cpu_shares) {
        cpu.set_shares(Some(shares));
    }
    if wanted.cpu_quota != 0 {
        cpu.set_quota(Some(wanted.cpu_quota));
    }
    if !wanted.cpuset_cpus.is_empty() {
        cpu.set_cpus(Some(wanted.cpuset_cpus.clone()));
    }
    if !wanted.cpuset_mems.is_empty() {
        cpu.set_mems(Some(wanted.cpuset_mems.clone()));
    }
}

/// Memory and swap are limited together: without a limit of its own, a container with a memory limit does not swap.
fn apply_memory(memory: &mut LinuxMemory, wanted: &LinuxContainerResources, host: &HostFacts) {
    let (limit, swap) = (wanted.memory_limit_in_bytes, wanted.memory_swap_limit_in_bytes);
    if limit != 0 {
        memory.set_limit(Some(limit));
    }
    let both = if swap == 0 { limit } else { swap };
    if host.swap && both != 0 {
        memory.set_swap(Some(both));
    }
}

fn apply_hugepages(limits: &mut Vec<LinuxHugepageLimit>, wanted: &HugepageLimit) {
    let mut limit = LinuxHugepageLimit::default();
    limit.set_page_size(wanted.page_size.clone()).set_limit(i64::try_from(wanted.limit).unwrap_or(i64::MAX));
    match limits.iter_mut().find(|l| *l.page_size() == wanted.page_size) {
        Some(old) => *old = limit,
        None => limits.push(limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostFacts {
        HostFacts { swap: true, hugetlb: true, ..HostFacts::default() }
    }

    fn wanted() -> LinuxContainerResources {
        LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 1 << 20,
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 0 }],
            ..LinuxContainerResources::default()
        }
    }

    /// A container's limits in the CRI's words.
    fn told(spec: &Spec) -> LinuxContainerResources {
        let linux = spec.linux().as_ref().and_then(|l| l.resources().clone()).unwrap_or_default();
        let cpu = linux.cpu().clone().unwrap_or_default();
        let memory = linux.memory().unwrap_or_default();
        let score = spec.process().as_ref().and_then(|p| p.oom_score_adj());
        LinuxContainerResources {
            cpu_period: cpu.period().and_then(|p| i64::try_from(p).ok()).unwrap_or_default(),
            cpu_quota: cpu.quota().unwrap_or_default(),
            cpu_shares: cpu.shares().and_then(|s| i64::try_from(s).ok()).unwrap_or_default(),
            memory_limit_in_bytes: memory.limit().unwrap_or_default(),
            oom_score_adj: score.unwrap_or_default().into(),
            cpuset_cpus: cpu.cpus().clone().unwrap_or_default(),
            cpuset_mems: cpu.mems().clone().unwrap_or_default(),
            hugepage_limits: linux.hugepage_limits().iter().flatten().map(hugepage_status).collect(),
            unified: linux.unified().clone().unwrap_or_default(),
            memory_swap_limit_in_bytes: memory.swap().unwrap_or_default(),
        }
    }

    fn hugepage_status(limit: &LinuxHugepageLimit) -> HugepageLimit {
        HugepageLimit { page_size: limit.page_size().clone(), limit: u64::try_from(limit.limit()).unwrap_or_default() }
    }

    fn spec(wanted: &LinuxContainerResources) -> Spec {
        let mut spec = super::super::empty_spec();
        let mut linux = super::super::empty_linux();
        linux.set_resources(Some(of(Some(wanted), &host()).unwrap()));
        spec.set_linux(Some(linux));
        spec
    }

    #[test]
    fn a_spec_has_what_was_asked_for() {
        let told = told(&spec(&wanted()));
        assert_eq!(told, LinuxContainerResources { memory_swap_limit_in_bytes: 1 << 20, ..wanted() });
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let change = LinuxContainerResources { cpu_quota: -1, memory_limit_in_bytes: 2 << 20, ..Default::default() };
        let update = update_resources(&spec(&wanted()), &change, &host()).unwrap();
        let expected = LinuxContainerResources {
            cpu_quota: -1,
            memory_limit_in_bytes: 2 << 20,
            memory_swap_limit_in_bytes: 2 << 20,
            ..wanted()
        };
        assert_eq!(told(&update.spec), expected);
        assert_eq!(update.resources.devices(), &None);
        assert_eq!(update.resources.memory().unwrap().limit(), Some(2 << 20));
        let devices = update.spec.linux().as_ref().unwrap().resources().as_ref().unwrap().devices();
        assert_eq!(devices, &Some(vec![denied_devices()]));
    }

    #[test]
    fn what_the_machine_cannot_limit_is_left_out_or_refused() {
        let poor = HostFacts::default();
        let resources = of(Some(&wanted()), &poor).unwrap();
        assert_eq!((resources.memory().unwrap().swap(), resources.hugepage_limits()), (None, &None));
        let unified = LinuxContainerResources { unified: [("memory.high".into(), "1".into())].into(), ..wanted() };
        let refused = of(Some(&unified), &poor).unwrap_err().to_string();
        assert!(refused.starts_with("unified cgroup settings (memory.high) need cgroup v2"), "{refused}");
        let v2 = HostFacts { cgroup_v2: true, ..poor };
        assert_eq!(of(Some(&unified), &v2).unwrap().unified().as_ref().unwrap()["memory.high"], "1");
    }
}
