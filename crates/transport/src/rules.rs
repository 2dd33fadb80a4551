//! Which role may call what: one table for both services, deny by default.
//!
//! Invariants: the decision is a pure function of the call's name and of who calls; a call that the table does not
//! name is refused to all, also where nobody is asked for a certificate. Left out: what a call may do with which run;
//! a worker may write slices of any run, an operator may stop any job.

use crate::role::{Holder, Role};
use std::fmt;

use Role::{Operator, Service, Viewer, Worker};

/// Every call there is, and who may make it.
pub const RULES: &[(&str, &[Role])] = &[
    ("/mcl.v1.CoordinatorService/Session", &[Worker]),
    ("/mcl.v1.CoordinatorService/SubmitJob", &[Operator]),
    ("/mcl.v1.CoordinatorService/GetStatus", &[Operator, Worker, Viewer, Service]),
    ("/mcl.v1.CoordinatorService/GetHistory", &[Operator, Viewer]),
    ("/mcl.v1.CoordinatorService/AwaitEnd", &[Operator, Viewer]),
    ("/mcl.v1.CoordinatorService/DrainJob", &[Operator]),
    ("/mcl.v1.CoordinatorService/PauseJob", &[Operator]),
    ("/mcl.v1.CoordinatorService/ResumeJob", &[Operator]),
    ("/mcl.v1.CoordinatorService/CancelJob", &[Operator]),
    // A coordinator speaks for a run; ranks bring and fetch slices; an operator stores what a run begins with.
    ("/mcl.v1.CheckpointService/AnnounceTerm", &[Service]),
    ("/mcl.v1.CheckpointService/PutSlice", &[Worker, Operator]),
    ("/mcl.v1.CheckpointService/CommitCheckpoint", &[Service, Operator]),
    ("/mcl.v1.CheckpointService/ListCheckpoints", &[Operator, Worker, Viewer, Service]),
    ("/mcl.v1.CheckpointService/GetManifest", &[Operator, Worker, Viewer, Service]),
    // The weights themselves: not for those who only look. A coordinator has their features judged.
    ("/mcl.v1.CheckpointService/GetSlice", &[Operator, Worker, Service]),
    ("/grpc.health.v1.Health/Check", &[Operator, Worker, Viewer, Service]),
    // Holds a stream open.
    ("/grpc.health.v1.Health/Watch", &[Operator, Service]),
];

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Nobody was asked: the service listens without TLS.
    Unchecked,
    /// The holder of a certificate of the cluster's authority.
    Known(Holder),
}

/// Why a call is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// The table does not name it.
    UnknownCall,
    /// The certificate carries no role.
    NoRole,
    /// None of the caller's roles is enough; these are.
    WrongRole(&'static [Role]),
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownCall => f.write_str("nobody may call this: it is not among the known calls"),
            Self::NoRole => f.write_str(
                "the certificate carries no role: issue one with `mcl certs issue --role ...`, or with an \
                 alternative name such as URI:mcl://role/operator",
            ),
            Self::WrongRole(enough) => {
                let enough: Vec<&str> = enough.iter().map(|role| role.as_str()).collect();
                write!(f, "the certificate's role is not enough: expected {}", enough.join(" or "))
            }
        }
    }
}

/// Roles that may make a call; none where the table does not name it.
pub fn allowed(call: &str) -> Option<&'static [Role]> {
    RULES.iter().find(|(name, _)| *name == call).map(|(_, roles)| *roles)
}

/// Whether somebody may make a call.
///
/// # Errors
/// Says why not.
pub fn judge(call: &str, caller: &Caller) -> Result<(), Denied> {
    let roles = allowed(call).ok_or(Denied::UnknownCall)?;
    match caller {
        Caller::Unchecked => Ok(()),
        Caller::Known(holder) if holder.roles.is_empty() => Err(Denied::NoRole),
        Caller::Known(holder) if roles.iter().any(|role| holder.roles.contains(role)) => Ok(()),
        Caller::Known(_) => Err(Denied::WrongRole(roles)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use prost_types::FileDescriptorSet;
    use std::collections::{BTreeMap, BTreeSet};

    /// Who may call what, as people agreed on it: o(perator), w(orker), v(iewer), s(ervice).
    const EXPECTED: &[(&str, &str)] = &[
        ("mcl.v1.CoordinatorService/Session", "w"),
        ("mcl.v1.CoordinatorService/SubmitJob", "o"),
        ("mcl.v1.CoordinatorService/GetStatus", "owvs"),
        ("mcl.v1.CoordinatorService/GetHistory", "ov"),
        ("mcl.v1.CoordinatorService/AwaitEnd", "ov"),
        ("mcl.v1.CoordinatorService/DrainJob", "o"),
        ("mcl.v1.CoordinatorService/PauseJob", "o"),
        ("mcl.v1.CoordinatorService/ResumeJob", "o"),
        ("mcl.v1.CoordinatorService/CancelJob", "o"),
        ("mcl.v1.CheckpointService/AnnounceTerm", "s"),
        ("mcl.v1.CheckpointService/PutSlice", "ow"),
        ("mcl.v1.CheckpointService/CommitCheckpoint", "os"),
        ("mcl.v1.CheckpointService/ListCheckpoints", "owvs"),
        ("mcl.v1.CheckpointService/GetManifest", "owvs"),
        ("mcl.v1.CheckpointService/GetSlice", "ows"),
        ("grpc.health.v1.Health/Check", "owvs"),
        ("grpc.health.v1.Health/Watch", "os"),
    ];

    /// Every call of the files that the services are generated from. Health has one that is not served (List).
    fn described() -> BTreeSet<String> {
        let files = [mcl_proto::FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET];
        let sets = files.map(|bytes| FileDescriptorSet::decode(bytes).unwrap());
        let mut calls = BTreeSet::new();
        for file in sets.iter().flat_map(|set| &set.file) {
            for service in &file.service {
                let name = format!("{}.{}", file.package(), service.name());
                calls.extend(service.method.iter().map(|m| format!("{name}/{}", m.name())));
            }
        }
        calls
    }

    #[test]
    fn every_call_and_role_is_judged_as_agreed() {
        let expected: BTreeMap<_, _> = EXPECTED.iter().copied().collect();
        let described = described();
        assert!(described.len() > 13, "{described:?}");
        for call in &described {
            let path = format!("/{call}");
            let may = expected.get(call.as_str()).copied().unwrap_or_default();
            let named = expected.contains_key(call.as_str());
            for role in Role::ALL {
                let caller = Caller::Known(Holder { roles: BTreeSet::from([role]), name: None });
                let letter = role.as_str().chars().next().unwrap();
                assert_eq!(judge(&path, &caller).is_ok(), may.contains(letter), "{call} as {role}");
            }
            let all = Caller::Known(Holder { roles: Role::ALL.into_iter().collect(), name: None });
            assert_eq!(judge(&path, &all).is_ok(), named, "{call} with all roles");
            let nobody = judge(&path, &Caller::Known(Holder::default()));
            assert_eq!(nobody, Err(if named { Denied::NoRole } else { Denied::UnknownCall }), "{call}");
            assert_eq!(judge(&path, &Caller::Unchecked).is_ok(), named, "{call} without TLS");
        }
        let ours = |c: &&String| c.starts_with("mcl.");
        let covered = expected.keys().filter(|c| c.starts_with("mcl.")).count();
        assert_eq!(described.iter().filter(ours).count(), covered, "a call without an expectation");
    }

    #[test]
    fn what_the_table_does_not_name_is_refused_to_all() {
        let all = Caller::Known(Holder { roles: Role::ALL.into_iter().collect(), name: None });
        for call in
            ["", "/", "/mcl.v1.CoordinatorService/Session/", "/MCL.v1.CoordinatorService/Session", "/x/y"]
        {
            assert_eq!(judge(call, &all), Err(Denied::UnknownCall), "{call}");
            assert_eq!(judge(call, &Caller::Unchecked), Err(Denied::UnknownCall), "{call}");
        }
    }
}
