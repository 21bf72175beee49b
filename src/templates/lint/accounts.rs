//! Users and groups of a Linux guest.

use super::guest::GuestTree;

/// A line of `/etc/passwd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GuestUser {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: String,
    pub shell: String,
}

#[derive(Debug, Default)]
pub(super) struct Accounts {
    pub users: Vec<GuestUser>,
    /// Name, number, members.
    groups: Vec<(String, u32, Vec<String>)>,
}

impl Accounts {
    pub fn read(tree: &GuestTree) -> Accounts {
        let lines = |path: &str| tree.text(path).unwrap_or_default();
        Accounts::parse(&lines("/etc/passwd"), &lines("/etc/group"))
    }

    fn parse(passwd: &str, group: &str) -> Accounts {
        let users = passwd.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, _, home, shell] = fields.as_slice() else { return None };
            Some(GuestUser {
                name: (*name).to_owned(),
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
                home: (*home).to_owned(),
                shell: if shell.is_empty() { "/bin/sh" } else { shell }.to_owned(),
            })
        });
        let groups = group.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, gid, members] = fields.as_slice() else { return None };
            Some(((*name).to_owned(), gid.parse().ok()?, members.split(',').map(str::to_owned).collect()))
        });
        Accounts { users: users.collect(), groups: groups.collect() }
    }

    pub fn user(&self, name: &str) -> Option<&GuestUser> {
        self.users.iter().find(|user| user.name == name)
    }

    /// Names of the groups that a user is in.
    pub fn groups_of(&self, user: &GuestUser) -> Vec<&str> {
        self.groups
            .iter()
            .filter(|(_, gid, members)| *gid == user.gid || members.contains(&user.name))
            .map(|(name, ..)| name.as_str())
            .collect()
    }

    /// The users whose homes may hold secrets: root, and those that people or jobs use.
    pub fn with_homes(&self) -> impl Iterator<Item = &GuestUser> {
        self.users.iter().filter(|user| user.uid == 0 || (user.uid >= 1000 && user.uid < 65534))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_accounts_are_left_out() {
        let accounts = Accounts::parse(
            "root:x:0:0:root:/root:/bin/bash\nbroken:x:0\nci:x:1000:1000::/home/ci:\nnobody:x:65534:65534::/:/bin/false\n",
            "ci:x:1000:\ndocker:x:999:a,ci\nbroken\n",
        );
        let ci = accounts.user("ci").unwrap();
        assert_eq!((ci.uid, ci.home.as_str(), ci.shell.as_str()), (1000, "/home/ci", "/bin/sh"));
        assert_eq!(accounts.groups_of(ci), ["ci", "docker"]);
        assert_eq!(accounts.with_homes().map(|user| user.name.as_str()).collect::<Vec<_>>(), ["root", "ci"]);
    }
}
