//! Pictures in a real S3 server: training on shards there ends with the bits of training on the same shards in a folder,
//! also where a run goes on from the other place, and what is said when they are not there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::{Sandbox, error_of};
use mcl_testkit::{Fault, S3Server};
use std::time::Duration;

/// Shards in `shards/` and in the bucket's `team/shards`; caches below the sandbox.
fn on_s3(server: &S3Server) -> Sandbox {
    let sandbox = Sandbox::new();
    let mut environment = server.environment();
    environment.push(("XDG_CACHE_HOME", sandbox.path("caches").display().to_string()));
    let sandbox = sandbox.with_environment(environment);
    sandbox.ok(&["data", "pack", "objects", "--out", "shards", "--samples-per-shard", "25"]);
    let bucket = server.file("team/shards");
    std::fs::create_dir_all(&bucket).unwrap();
    for file in std::fs::read_dir(sandbox.path("shards")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), bucket.join(file.file_name())).unwrap();
    }
    sandbox
}

#[test]
fn shards_in_s3_train_to_the_bits_of_shards_in_a_folder_whatever_the_server_does() {
    let server = S3Server::start();
    let sandbox = on_s3(&server);
    let away = format!("data.source={}", server.url("team/shards"));
    let (home, steps) = ("data.source=shards", "train.steps=16");
    sandbox.train("home", 2, &[home, steps]);
    let slow = Fault::Slow(Duration::from_millis(200));
    server.meet([
        slow,
        Fault::Refuse,
        Fault::DropAnswer,
        Fault::None,
        Fault::DropRequest,
        slow,
        Fault::Refuse,
    ]);
    sandbox.train("away", 2, &[&away, steps, "data.cache_dir=cache"]);
    assert_eq!(server.met(), 6, "all of it was met");
    assert_eq!(sandbox.digest("away"), sandbox.digest("home"));
    sandbox.exact_ledger("away");
    assert!(sandbox.path("cache").is_dir(), "where it was said to be");
    // Begun in one place and ended in the other.
    sandbox.train("moved", 2, &[&away, "train.steps=8", "train.schedule_steps=16"]);
    sandbox.train("moved", 2, &[home, steps, "train.schedule_steps=16"]);
    assert_eq!(sandbox.digest("moved"), sandbox.digest("home"));
    sandbox.exact_ledger("moved");
}

#[test]
fn the_tools_read_shards_in_s3_and_say_what_is_not_there() {
    let server = S3Server::start();
    let sandbox = on_s3(&server);
    let url = server.url("team/shards");
    let source = format!("data.source={url}");
    let valid = |source: &str| sandbox.json(&["validate", "job.toml", "--json", "--set", source]);
    let (here, away) = (valid("data.source=shards"), valid(&source));
    assert_eq!(here["dataset_digest"], away["dataset_digest"]);
    let inspect = |source: &str| sandbox.json(&["data", "inspect", source, "--json"]);
    assert_eq!(inspect("shards"), inspect(&url));
    sandbox.ok(&["data", "preview", "job.toml", "--out", "sheet.png", "--set", &source]);
    let side = server.file("team/shards/shard-000003.tar.index.json");
    let written = std::fs::read(&side).unwrap();
    std::fs::remove_file(&side).unwrap();
    let indexed = sandbox.json(&["data", "index", &url, "--json"]);
    assert_eq!(indexed["shards"].as_array().unwrap().len(), 7);
    assert_eq!(std::fs::read(&side).unwrap(), written);

    std::fs::create_dir(server.file("loose")).unwrap();
    std::fs::write(server.file("loose/a.jpg"), "x").unwrap();
    let loose = server.url("loose");
    let inspected = sandbox.json(&["data", "inspect", &loose, "--json"]);
    assert_eq!((&inspected["count"], &inspected["undecodable"][0]["id"]), (&1.into(), &"a.jpg".into()));
    sandbox.fails(2, &["tar shards"], &["data", "index", &loose, "--kind", "folder"]);
    sandbox.fails(2, &["mcl data pack", "a.jpg"], &["data", "index", &loose]);
    let source = format!("data.source={loose}");
    sandbox.fails(2, &["mcl data pack", &loose], &["run", "job.toml", "--set", &source]);
    let source = format!("data.source={}", server.url("nowhere"));
    sandbox.fails(2, &["nothing is there"], &["validate", "job.toml", "--set", &source]);
    sandbox.fails(2, &["ftp://"], &["run", "job.toml", "--set", "data.source=ftp://a/b"]);
}

#[test]
fn a_shard_that_is_replaced_while_a_run_reads_it_ends_the_run_with_its_name() {
    let server = S3Server::start();
    let sandbox = on_s3(&server);
    let source = format!("data.source={}", server.url("team/shards"));
    // The coordinator and the ranks list the shards; before a rank reads one, all of them are others.
    let slow = Fault::Slow(Duration::from_millis(20));
    server.meet(std::iter::repeat_n(slow, 100_000));
    let mut run = sandbox.start("away", 1, &[&source, "data.cache_dir=cache", "train.steps=2000"]);
    run.until("a step", |run| mcl_system_tests::committed(run) > 0);
    for shard in 0..7 {
        let path = server.file(&format!("team/shards/shard-00000{shard}.tar"));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[0] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
    // What is cached is good; without it the change is noticed.
    std::fs::remove_dir_all(sandbox.path("cache")).unwrap();
    let output = run.end();
    let said = error_of(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("has changed since the dataset was opened") && said.contains("shard-00000"),
        "{said}"
    );
}
