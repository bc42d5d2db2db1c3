//! Who a container's process is: the request's user and groups, or the image's, looked up in the image's own passwd
//! and group files. Sources: passwd(5), group(5), the OCI image spec's `User`, KEP-3619 (supplementalGroupsPolicy).

use std::collections::BTreeSet;

use cri::v1;
use oci_spec::image::Config as ImageConfig;
use oci_spec::runtime::User;

use super::{SpecError, security_of};

/// The bytes of an image's account files; empty where it has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    pub passwd: Vec<u8>,
    pub group: Vec<u8>,
}

impl Accounts {
    /// Whether the container's user cannot be told without the image's account files.
    pub fn are_needed(config: &v1::ContainerConfig, image: &ImageConfig) -> bool {
        let security = security_of(config);
        let Ok(wanted) = Wanted::of(&security, image) else { return false };
        let strict = security.supplemental_groups_policy == v1::SupplementalGroupsPolicy::Strict as i32;
        let is_id = |name: &str| name.parse::<u32>().is_ok();
        !(strict && is_id(&wanted.user) && wanted.group.as_deref().is_some_and(is_id))
    }

    fn users(&self) -> impl Iterator<Item = UserEntry<'_>> {
        lines(&self.passwd).filter_map(UserEntry::parse)
    }

    fn groups(&self) -> impl Iterator<Item = GroupEntry<'_>> {
        lines(&self.group).filter_map(GroupEntry::parse)
    }
}

/// The user of a container's process.
///
/// # Errors
/// Where the image's files do not have it, or a number is none.
pub fn of(
    security: &v1::LinuxContainerSecurityContext,
    image: &ImageConfig,
    accounts: &Accounts,
) -> Result<User, SpecError> {
    let wanted = Wanted::of(security, image)?;
    let by_id = wanted.user.parse::<u64>().ok().map(|_| id("user", &wanted.user)).transpose()?;
    let entry = accounts.users().find(|u| by_id.map_or(u.name == wanted.user, |id| u.uid == id));
    let uid = match (by_id, &entry) {
        (Some(uid), _) => uid,
        (None, Some(entry)) => entry.uid,
        (None, None) => {
            return Err(SpecError::NoSuchAccount { file: "/etc/passwd", what: "user", name: wanted.user });
        }
    };
    let gid = match &wanted.group {
        Some(group) => group_id(group, accounts)?,
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    // The primary group among the others: a process could leave it otherwise (CVE-2022-36109).
    let mut groups = BTreeSet::from([gid]);
    for group in &security.supplemental_groups {
        groups.insert(id("supplemental group", &group.to_string())?);
    }
    if let (true, Some(entry)) = (merges(security)?, &entry) {
        groups.extend(accounts.groups().filter(|g| g.members().any(|m| m == entry.name)).map(|g| g.gid));
    }
    let mut user = User::default();
    user.set_uid(uid).set_gid(gid).set_additional_gids(Some(groups.into_iter().collect()));
    Ok(user)
}

/// Numbers alone, for a task whose image is ours.
pub(crate) fn group_list(primary: u32, more: &[i64]) -> Result<Vec<u32>, SpecError> {
    let mut groups = BTreeSet::from([primary]);
    for group in more {
        groups.insert(id("supplemental group", &group.to_string())?);
    }
    Ok(groups.into_iter().collect())
}

fn merges(security: &v1::LinuxContainerSecurityContext) -> Result<bool, SpecError> {
    let value = security.supplemental_groups_policy;
    match v1::SupplementalGroupsPolicy::try_from(value) {
        Ok(v1::SupplementalGroupsPolicy::Merge) => Ok(true),
        Ok(v1::SupplementalGroupsPolicy::Strict) => Ok(false),
        Err(_) => Err(SpecError::UnknownValue { field: "supplemental_groups_policy", value }),
    }
}

/// User and group by name or number, as they were asked for.
struct Wanted {
    user: String,
    group: Option<String>,
}

impl Wanted {
    fn of(security: &v1::LinuxContainerSecurityContext, image: &ImageConfig) -> Result<Self, SpecError> {
        let group = security.run_as_group.as_ref().map(|g| g.value);
        let user = match (security.run_as_username.as_str(), security.run_as_user.as_ref()) {
            ("", Some(uid)) => Some(uid.value.to_string()),
            ("", None) => None,
            (name, _) => Some(name.to_owned()),
        };
        match (user, group) {
            (Some(user), group) => Ok(Self { user, group: group.map(|g| g.to_string()) }),
            (None, Some(group)) => Err(SpecError::GroupWithoutUser(group)),
            (None, None) => Ok(Self::of_image(image.user().as_deref().unwrap_or_default())),
        }
    }

    fn of_image(text: &str) -> Self {
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let user = if user.is_empty() { "0" } else { user };
        Self { user: user.into(), group: group.filter(|g| !g.is_empty()).map(String::from) }
    }
}

fn group_id(group: &str, accounts: &Accounts) -> Result<u32, SpecError> {
    if group.parse::<i64>().is_ok() {
        return id("group", group);
    }
    let found = accounts.groups().find(|g| g.name == group).map(|g| g.gid);
    found.ok_or_else(|| SpecError::NoSuchAccount { file: "/etc/group", what: "group", name: group.into() })
}

/// The highest number stands for "no id" to the kernel.
fn id(what: &'static str, text: &str) -> Result<u32, SpecError> {
    let number = text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
    number.ok_or_else(|| SpecError::IdRange { what, value: text.into() })
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &str> {
    bytes.split(|b| *b == b'\n').filter_map(|line| std::str::from_utf8(line).ok()).map(str::trim)
}

/// A line of passwd(5): name, password, uid, gid, and more.
struct UserEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

impl<'a> UserEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Self { name, uid, gid })
    }
}

/// A line of group(5): name, password, gid, members.
struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> GroupEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Self { name, gid, members: fields.next().unwrap_or_default() })
    }

    fn members(&self) -> impl Iterator<Item = &'a str> {
        self.members.split(',').map(str::trim)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\nnumber:x:abc:1::\n\
                          default-user:x:1000:1000::/home/default-user:/bin/sh\nwww:x:33:34::/:\n";
    const GROUP: &str = "root:x:0:root\nadm:x:4:default-user,www\ndefault-user:x:1000:\n\
                         group-defined-in-image:x:50000:default-user\n";

    fn accounts() -> Accounts {
        Accounts { passwd: PASSWD.into(), group: GROUP.into() }
    }

    fn who(security: v1::LinuxContainerSecurityContext, image_user: &str) -> Result<(u32, u32, Vec<u32>), String> {
        let mut image = ImageConfig::default();
        image.set_user(Some(image_user.into()));
        let user = of(&security, &image, &accounts()).map_err(|e| e.to_string())?;
        Ok((user.uid(), user.gid(), user.additional_gids().clone().unwrap()))
    }

    fn asks() -> v1::LinuxContainerSecurityContext {
        v1::LinuxContainerSecurityContext::default()
    }

    fn value(value: i64) -> Option<v1::Int64Value> {
        Some(v1::Int64Value { value })
    }

    #[test]
    fn the_images_user_in_all_its_forms() {
        assert_eq!(who(asks(), ""), Ok((0, 0, vec![0])));
        assert_eq!(who(asks(), "1000"), Ok((1000, 1000, vec![4, 1000, 50000])));
        assert_eq!(who(asks(), "www"), Ok((33, 34, vec![4, 34])));
        assert_eq!(who(asks(), "www:adm"), Ok((33, 4, vec![4])));
        assert_eq!(who(asks(), "2000:3000"), Ok((2000, 3000, vec![3000])));
        assert_eq!(who(asks(), "2000"), Ok((2000, 0, vec![0])));
        assert_eq!(who(asks(), ":adm"), Ok((0, 4, vec![0, 4])));
        assert_eq!(who(asks(), "nobody"), Err("the image's /etc/passwd has no user \"nobody\"".into()));
        assert_eq!(who(asks(), "www:none"), Err("the image's /etc/group has no group \"none\"".into()));
    }

    #[test]
    fn the_requests_user_wins() {
        let user = v1::LinuxContainerSecurityContext { run_as_user: value(1001), ..asks() };
        assert_eq!(who(user.clone(), "www"), Ok((1001, 0, vec![0])));
        let group = v1::LinuxContainerSecurityContext { run_as_group: value(1002), ..user };
        assert_eq!(who(group, "www"), Ok((1001, 1002, vec![1002])));
        let name = v1::LinuxContainerSecurityContext { run_as_username: "www".into(), ..asks() };
        assert_eq!(who(name, ""), Ok((33, 34, vec![4, 34])));
        let alone = v1::LinuxContainerSecurityContext { run_as_group: value(7), ..asks() };
        assert!(who(alone, "www").unwrap_err().starts_with("run_as_group 7 is set without"));
    }

    #[test]
    fn supplemental_groups_merge_with_the_images_or_not() {
        let merge =
            v1::LinuxContainerSecurityContext { run_as_user: value(1000), supplemental_groups: vec![1234], ..asks() };
        assert_eq!(who(merge.clone(), ""), Ok((1000, 1000, vec![4, 1000, 1234, 50000])));
        let strict = v1::LinuxContainerSecurityContext { supplemental_groups_policy: 1, ..merge.clone() };
        assert_eq!(who(strict, ""), Ok((1000, 1000, vec![1000, 1234])));
        let unknown = v1::LinuxContainerSecurityContext { supplemental_groups_policy: 9, ..merge };
        assert_eq!(who(unknown, ""), Err("unknown value 9 of supplemental_groups_policy".into()));
    }

    #[test]
    fn ids_that_wrap_are_refused() {
        for bad in ["4294967295", "4294967296", "99999999999999999999"] {
            let refused = who(asks(), bad);
            assert!(
                refused.as_ref().is_err_and(|e| e.contains("out of range") || e.contains("no user")),
                "{refused:?}"
            );
        }
        let negative = v1::LinuxContainerSecurityContext { run_as_user: value(-1), ..asks() };
        assert!(who(negative, "").is_err());
        let group = v1::LinuxContainerSecurityContext { supplemental_groups: vec![1 << 32], ..asks() };
        assert!(who(group, "").unwrap_err().starts_with("supplemental group 4294967296 is out of range"));
    }

    #[test]
    fn the_image_is_looked_into_only_where_it_matters() {
        let config = |security| v1::ContainerConfig {
            linux: Some(v1::LinuxContainerConfig { security_context: Some(security), ..Default::default() }),
            ..Default::default()
        };
        let image = ImageConfig::default();
        assert!(Accounts::are_needed(&config(asks()), &image));
        let numbers = v1::LinuxContainerSecurityContext {
            run_as_user: value(1),
            run_as_group: value(1),
            supplemental_groups_policy: 1,
            ..asks()
        };
        assert!(!Accounts::are_needed(&config(numbers.clone()), &image));
        let merge = v1::LinuxContainerSecurityContext { supplemental_groups_policy: 0, ..numbers };
        assert!(Accounts::are_needed(&config(merge), &image));
    }

    proptest! {
        #[test]
        fn any_bytes_are_accounts(
            passwd: Vec<u8>,
            group in "([a-z]{0,3}:x?:[0-9]{0,12}:[a-z,:]{0,6}\n?){0,6}",
            user in "[a-z0-9:]{0,6}",
        ) {
            let mut image = ImageConfig::default();
            image.set_user(Some(user));
            let _ = of(&asks(), &image, &Accounts { passwd, group: group.into() });
        }
    }
}
