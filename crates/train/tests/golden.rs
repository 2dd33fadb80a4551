//! Every golden case under `$MCL_GOLDENS` (folders separated by `:`; default: the project's own and, where
//! present, those beside the project), one line a case. Cases of several official ranks run in as many
//! processes over the real collective.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_collective::{Group, Membership, Store};
use mcl_model::ComputeMode;
use mcl_train::NormScope;
use mcl_train::golden::{Case, Report, TOLERANCE, find_cases};
use mcl_types::{FencingToken, Rank};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tch::Device;

const RANK: &str = "MCL_TEST_RANK";
const STORE: &str = "MCL_TEST_STORE";
const CASE: &str = "MCL_TEST_CASE";
const REPORT: &str = "MCL_TEST_REPORT";
const TIMEOUT: Duration = Duration::from_secs(120);

fn roots() -> Vec<PathBuf> {
    if let Ok(list) = std::env::var("MCL_GOLDENS") {
        return list.split(':').map(PathBuf::from).collect();
    }
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    // A case that stands in both places is read from the fuller one.
    let beside = project.join("../shared/goldens");
    let own = project.join("tests/goldens");
    if beside.is_dir() { vec![beside, own] } else { vec![own] }
}

fn cases() -> Vec<Case> {
    let mut seen = std::collections::BTreeSet::new();
    let folders: Vec<PathBuf> =
        roots().iter().flat_map(|root| find_cases(std::slice::from_ref(root))).collect();
    let cases: Vec<Case> = folders
        .iter()
        .filter(|f| seen.insert(f.file_name().unwrap().to_owned()))
        .map(|f| Case::open(f).unwrap())
        .collect();
    assert!(!cases.is_empty(), "no golden case under {:?}", roots());
    cases
}

fn member(store: &Store, rank: u32, world: u32) -> Group {
    let membership = Membership { token: FencingToken::default(), rank: Rank::new(rank), world };
    Group::form(store, membership, TIMEOUT, "127.0.0.1", None).unwrap()
}

/// All ranks of a case as processes: rank 0 is this one.
fn run_in_processes(folder: &Path, case: &Case) -> Report {
    let world = case.world_size();
    let store = Store::host("127.0.0.1", None, TIMEOUT).unwrap();
    let address = format!("127.0.0.1:{}", store.port().unwrap());
    let exchange = tempfile::tempdir().unwrap();
    let children: Vec<_> = (1..world)
        .map(|rank| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "a_peer_of_a_case", "--nocapture"])
                .env(RANK, rank.to_string())
                .env(STORE, &address)
                .env(CASE, folder)
                .env(REPORT, exchange.path().join(rank.to_string()))
                .spawn()
                .unwrap()
        })
        .collect();
    let mut report =
        case.run(ComputeMode::Official, Rank::new(0), Some(member(&store, 0, world)), Device::Cpu).unwrap();
    for (mut child, rank) in children.into_iter().zip(1..world) {
        assert!(child.wait().unwrap().success(), "rank {rank} failed");
        let text = std::fs::read_to_string(exchange.path().join(rank.to_string())).unwrap();
        report.merge(&Report { errors: serde_json::from_str(&text).unwrap() });
    }
    report
}

/// Runs as another rank of a case when started by a test; else there is nothing to do.
#[test]
fn a_peer_of_a_case() {
    tch::set_num_threads(1);
    let Ok(rank) = std::env::var(RANK) else { return };
    let rank: u32 = rank.parse().unwrap();
    let case = Case::open(Path::new(&std::env::var(CASE).unwrap())).unwrap();
    let store = Store::connect(&std::env::var(STORE).unwrap(), TIMEOUT).unwrap();
    let group = member(&store, rank, case.world_size());
    let report = case.run(ComputeMode::Official, Rank::new(rank), Some(group), Device::Cpu).unwrap();
    std::fs::write(std::env::var(REPORT).unwrap(), serde_json::to_string(&report.errors).unwrap()).unwrap();
}

fn tell(case: &Case, how: &str, report: &Report) {
    let largest = report.largest();
    println!("golden {:<20} {how:<28} largest error {largest:.1e}", case.name());
    assert!(report.passes(), "{} {how}: over {TOLERANCE:e}: {:#?}", case.name(), report.errors);
}

fn folder_of(case: &Case) -> PathBuf {
    roots().iter().map(|root| root.join(case.name())).find(|f| f.is_dir()).unwrap()
}

#[test]
fn official_steps_match_every_case() {
    tch::set_num_threads(1);
    for case in cases() {
        if case.world_size() == 1 {
            tell(
                &case,
                "official, 1 rank",
                &case.run(ComputeMode::Official, Rank::new(0), None, Device::Cpu).unwrap(),
            );
        } else {
            let how = format!("official, {} processes", case.world_size());
            tell(&case, &how, &run_in_processes(&folder_of(&case), &case));
        }
    }
}

#[test]
fn lanes_of_one_rank_match_the_cases_of_several_ranks() {
    tch::set_num_threads(1);
    for case in cases().iter().filter(|c| c.world_size() > 1) {
        let report = case.run(ComputeMode::Official, Rank::new(0), None, Device::Cpu).unwrap();
        tell(case, &format!("official, {} lanes on 1 rank", case.world_size()), &report);
    }
}

/// MCL_SPEC section 7: f32 is compared on losses and gradient norm of the first step.
#[test]
fn first_steps_in_f32_are_near() {
    tch::set_num_threads(1);
    for case in cases() {
        let first = case.first_step_in_f32(ComputeMode::Official, Device::Cpu).unwrap();
        println!("golden {:<20} f32 {first:?}", case.name());
        assert!(first.loss_error <= 1e-3 && first.norm_error <= 1e-2, "{}: {first:?}", case.name());
    }
}

#[test]
fn exact_mode_matches_in_everything_but_the_statistics_that_it_leaves_out() {
    tch::set_num_threads(1);
    for case in cases() {
        let report = case.run(ComputeMode::Exact, Rank::new(0), None, Device::Cpu).unwrap();
        tell(&case, "exact, 1 rank", &report);
    }
}

/// With one lane, statistics of a lane are those of the job.
#[test]
fn statistics_of_a_lane_match_the_cases_of_one_rank() {
    tch::set_num_threads(1);
    let mut seen = 0;
    for case in cases() {
        if case.world_size() > 1 || case.name().starts_with("b_") {
            continue;
        }
        let case = case.with_norm(NormScope::Lane);
        tell(
            &case,
            "exact, statistics of a lane",
            &case.run(ComputeMode::Exact, Rank::new(0), None, Device::Cpu).unwrap(),
        );
        seen += 1;
    }
    assert!(seen > 0, "no case of one rank");
}
