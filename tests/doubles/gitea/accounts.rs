//! Users, organisations, repositories and access tokens. Names are compared without regard to case, as the real one does.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::world::{Scope, Table, World};

pub struct User {
    pub id: u64,
    pub login: String,
    pub administrator: bool,
    pub created_at: Timestamp,
}

pub struct Organization {
    /// In one table with the users.
    pub id: u64,
    pub name: String,
    pub owners: BTreeSet<String>,
    pub members: BTreeSet<String>,
    pub created_at: Timestamp,
}

pub struct Repository {
    pub id: u64,
    pub owner: String,
    pub name: String,
    pub private: bool,
    /// Login → `read`, `write` or `admin`.
    pub collaborators: BTreeMap<String, String>,
    pub created_at: Timestamp,
}

impl Repository {
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

pub struct Token {
    pub user: String,
    /// `all`, or scopes such as `read:repository`; `write:` includes `read:`.
    pub scopes: Vec<String>,
}

fn found<'a>(names: impl Iterator<Item = &'a String>, wanted: &str) -> Option<String> {
    let mut names = names;
    names.find(|name| name.eq_ignore_ascii_case(wanted)).cloned()
}

impl World {
    pub fn repository(&self, owner: &str, name: &str) -> Option<&Repository> {
        let key = found(self.repositories.keys(), &format!("{owner}/{name}"))?;
        self.repositories.get(&key)
    }

    pub fn organization(&self, name: &str) -> Option<&Organization> {
        let key = found(self.organizations.keys(), name)?;
        self.organizations.get(&key)
    }

    /// What a new webhook or runner of this scope belongs to, if it exists.
    pub fn known_scope(&self, scope: &Scope) -> bool {
        match scope {
            Scope::System => true,
            Scope::Organization(name) => self.organizations.contains_key(name),
            Scope::User(login) => self.users.contains_key(login),
            Scope::Repository(name) => self.repositories.contains_key(name),
        }
    }

    pub fn add_user(&mut self, login: &str, administrator: bool) {
        if let Some(user) = self.users.get_mut(login) {
            user.administrator = administrator;
            return;
        }
        let user = User { id: self.id(Table::User), login: login.to_owned(), administrator, created_at: self.now() };
        self.users.insert(login.to_owned(), user);
    }

    pub fn add_organization(&mut self, name: &str, owners: Vec<String>, members: Vec<String>) {
        for login in owners.iter().chain(&members) {
            if !self.users.contains_key(login) {
                self.add_user(login, false);
            }
        }
        let (owners, members) = (owners.into_iter().collect(), members.into_iter().collect());
        if let Some(organization) = self.organizations.get_mut(name) {
            (organization.owners, organization.members) = (owners, members);
            return;
        }
        let (id, created_at) = (self.id(Table::User), self.now());
        let organization = Organization { id, name: name.to_owned(), owners, members, created_at };
        self.organizations.insert(name.to_owned(), organization);
    }

    /// False if there is no such owner.
    pub fn add_repository(&mut self, full_name: &str, private: bool, collaborators: BTreeMap<String, String>) -> bool {
        let Some((owner, name)) = full_name.split_once('/') else { return false };
        if !self.organizations.contains_key(owner) && !self.users.contains_key(owner) {
            return false;
        }
        if let Some(repository) = self.repositories.get_mut(full_name) {
            (repository.private, repository.collaborators) = (private, collaborators);
            return true;
        }
        let (id, created_at) = (self.id(Table::Repository), self.now());
        let (owner, name) = (owner.to_owned(), name.to_owned());
        let repository = Repository { id, owner, name, private, collaborators, created_at };
        self.repositories.insert(full_name.to_owned(), repository);
        true
    }
}
