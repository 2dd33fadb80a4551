//! What a certificate says of its holder: roles, and for some a name.
//!
//! Both are URIs among the certificate's alternative names: `mcl://role/worker`, `mcl://name/w7`. Invariant: what is
//! not understood grants nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// What the holder of a certificate may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A person or program that hands in, stops and looks at jobs.
    Operator,
    /// A machine that trains: its daemon, and its ranks towards the checkpoint service.
    Worker,
    /// Somebody who only looks.
    Viewer,
    /// Coordinator and checkpoint service: what clients expect to find, and what speaks for a run.
    Service,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Operator, Self::Worker, Self::Viewer, Self::Service];

    /// As certificates and people spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Worker => "worker",
            Self::Viewer => "viewer",
            Self::Service => "service",
        }
    }

    /// As it stands in a certificate.
    pub fn uri(self) -> String {
        format!("{ROLE}{}", self.as_str())
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not a role: expected operator, worker, viewer or service")]
pub struct RoleError {
    found: String,
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|role| role.as_str() == text);
        known.ok_or_else(|| RoleError { found: text.to_owned() })
    }
}

const ROLE: &str = "mcl://role/";
const NAME: &str = "mcl://name/";

/// How a name stands in a certificate.
pub fn name_uri(name: &HolderName) -> String {
    format!("{NAME}{name}")
}

/// The name that a certificate ties its holder to: a worker may say hello under it alone. Also a folder name, so
/// limited to `[A-Za-z0-9._-]`, 1 to 64 characters, not starting with a dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HolderName(String);

/// No name for a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` is not usable as a name: expected 1 to 64 characters of A-Z a-z 0-9 . _ - and no leading dot",
    found.escape_debug()
)]
pub struct HolderNameError {
    found: String,
}

impl HolderName {
    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HolderName {
    type Err = HolderNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The same letters as in the name of a run.
        let checked = mcl_types::RunId::new(text);
        checked.map(|name| Self(name.into())).map_err(|_| HolderNameError { found: text.to_owned() })
    }
}

impl fmt::Display for HolderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who is on the other side.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holder {
    /// What it may be.
    pub roles: BTreeSet<Role>,
    /// The name that it is tied to, if to any.
    pub name: Option<HolderName>,
}

impl Holder {
    /// From the URIs among a certificate's alternative names. Roles of other versions grant nothing; a name that makes
    /// no sense, or a second one, takes all roles away: it was meant to limit its holder.
    pub fn from_uris<'a>(uris: impl IntoIterator<Item = &'a str>) -> Self {
        let mut holder = Self::default();
        for uri in uris {
            if let Some(role) = uri.strip_prefix(ROLE) {
                holder.roles.extend(role.parse::<Role>().ok());
            } else if let Some(name) = uri.strip_prefix(NAME) {
                match name.parse() {
                    Ok(name) if holder.name.is_none() => holder.name = Some(name),
                    _ => return Self::default(),
                }
            }
        }
        holder
    }

    /// Whether it may say of itself that it is called so.
    pub fn may_be_called(&self, name: &str) -> bool {
        self.name.as_ref().is_none_or(|own| own.as_str() == name)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roles: Vec<&str> = self.roles.iter().map(|role| role.as_str()).collect();
        f.write_str(if roles.is_empty() { "no role" } else { "" })?;
        f.write_str(&roles.join(", "))?;
        self.name.as_ref().map_or(Ok(()), |name| write!(f, " `{name}`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_and_a_name_are_read_and_all_else_grants_nothing() {
        let foreign =
            ["mcl://role/admin", "mcl://role/Worker", "mcl://role/worker/", "https://role/worker", "mcl://x"];
        assert_eq!(Holder::from_uris(foreign), Holder::default());
        let both = Holder::from_uris(["mcl://role/worker", "mcl://name/w7", "mcl://role/viewer"]);
        assert_eq!(both.roles, BTreeSet::from([Role::Worker, Role::Viewer]));
        assert!(both.may_be_called("w7") && !both.may_be_called("w8") && !both.may_be_called(""));
        assert!(Holder::from_uris(["mcl://role/worker"]).may_be_called("anything"));
        for role in Role::ALL {
            assert_eq!(Holder::from_uris([role.uri().as_str()]).roles, BTreeSet::from([role]));
        }
    }

    #[test]
    fn a_name_that_makes_no_sense_limits_to_nothing() {
        for bad in ["mcl://name/", "mcl://name/..", "mcl://name/a/b", "mcl://name/\u{430}"] {
            assert_eq!(Holder::from_uris(["mcl://role/worker", bad]), Holder::default(), "{bad}");
        }
        let two = ["mcl://role/worker", "mcl://name/a", "mcl://name/b"];
        assert_eq!(Holder::from_uris(two), Holder::default());
    }
}
