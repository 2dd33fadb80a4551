//! A real S3 server that is slow, refuses and drops what it answers; damage in its objects; more than one part.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use bytes::Bytes;
use mcl_checkpoint_core::{CheckpointStore, Depth, Dtype, Layout, RecordError, StoreError, write_slice};
use mcl_testkit::{Fault, S3Server};
use mcl_types::{SplitMix64, Step};
use std::time::Duration;
use support::{commit_spec, in_s3, run, save, spec};

/// A slice of more than two parts.
fn large() -> Bytes {
    let data: Vec<u8> = (0..20_u32 << 20).map(|i| (i ^ (i >> 9)) as u8).collect();
    Bytes::from(write_slice(&[("w".to_owned(), Dtype::U8, vec![data.len()], data.as_slice())]).unwrap())
}

#[tokio::test]
async fn a_slice_of_many_parts_comes_back() {
    let server = S3Server::start();
    let store = in_s3(&server, "deep/er");
    let slice = large();
    store.stage_slice(spec("a", 10, 0, 1, &slice), slice.clone()).await.unwrap();
    store.commit(&commit_spec("a", 10, 1)).await.unwrap();
    assert_eq!(store.read_slice(&run("a"), Step::new(10), 0).await.unwrap(), slice);
    assert!(server.file("deep/er/a/step-0000000010/manifest.json").is_file(), "where it is said to be");
}

#[tokio::test]
async fn an_upload_that_is_dropped_leaves_no_parts_in_the_bucket() {
    let server = S3Server::start();
    let store = in_s3(&server, "p");
    let slice = large();
    let mut upload = store.begin_slice(spec("a", 10, 0, 1, &slice)).await.unwrap();
    upload.write(slice.slice(..9 << 20)).await.unwrap();
    assert_eq!(server.left_of_uploads().len(), 2, "the upload and a part: {:?}", server.left_of_uploads());
    drop(upload);
    let gone = async {
        while !server.left_of_uploads().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let gone = tokio::time::timeout(Duration::from_secs(10), gone).await;
    assert!(gone.is_ok(), "left in the bucket: {:?}", server.left_of_uploads());
}

/// Whatever single request fails, and however: the save succeeds, or says so and can be repeated.
#[tokio::test]
async fn any_request_may_be_slow_refused_or_lose_its_answer() {
    let server = S3Server::start();
    let store = in_s3(&server, "p");
    let before = save(&store, "a", 1, 1, 2).await.unwrap();
    let quiet = server.requests();
    save(&store, "a", 2, 2, 2).await.unwrap();
    let requests = usize::try_from(server.requests() - quiet).unwrap();
    assert!(requests > 10, "{requests} requests a save");
    let (mut step, mut failed) = (2_u64, 0);
    for fault in
        [Fault::Slow(Duration::from_millis(30)), Fault::Refuse, Fault::DropRequest, Fault::DropAnswer]
    {
        for at in 0..requests {
            step += 1;
            let seed = (step % 251) as u8;
            let met = server.met();
            server.meet(std::iter::repeat_n(Fault::None, at).chain([fault]));
            let saved = match save(&store, "a", step, seed, 2).await {
                Ok(saved) => saved,
                Err(error) => {
                    failed += 1;
                    let said = error.to_string();
                    assert!(said.contains("s3://bucket/p/a/step-"), "names the place: {said}");
                    assert!(store.latest_good(&run("a")).await.unwrap().unwrap().step < Step::new(step));
                    save(&store, "a", step, seed, 2).await.unwrap()
                }
            };
            assert_eq!(server.met(), met + 1, "{fault:?} at {at} was met");
            assert_eq!(store.latest_good(&run("a")).await.unwrap().unwrap(), saved, "{fault:?} at {at}");
        }
    }
    assert_eq!(store.verify(&run("a"), Step::new(1)).await.unwrap(), before);
    println!("{} faults, {failed} saves had to be repeated", 4 * requests);
    assert!(failed <= requests, "the store's own retries carry most of it: {failed}");
}

#[tokio::test]
async fn a_store_that_stays_away_is_an_error_that_names_it() {
    let server = S3Server::start();
    let settings = server.environment().into_iter().map(|(key, value)| {
        let value = if key == "AWS_SECRET_ACCESS_KEY" { "wrong".to_owned() } else { value };
        (key.to_owned(), value)
    });
    let location = server.url("p").parse().unwrap();
    let store = CheckpointStore::open_with(&location, Layout::RunFolders, settings).unwrap();
    let error = store.list(&run("a"), Depth::Quick).await.unwrap_err();
    assert!(matches!(error, StoreError::Read { .. }), "{error}");
    assert!(error.to_string().contains("s3://bucket/p/a"), "{error}");
    assert!(!error.to_string().contains("wrong"), "no secrets: {error}");
}

#[tokio::test]
async fn damaged_and_missing_objects_mean_the_checkpoint_before() {
    let server = S3Server::start();
    let mut random = SplitMix64::new(7);
    for case in 0..40 {
        let prefix = format!("case{case}");
        let store = in_s3(&server, &prefix);
        save(&store, "a", 10, 1, 2).await.unwrap();
        save(&store, "a", 20, 2, 2).await.unwrap();
        let names = ["manifest.json", "slice-000-of-002.safetensors", "slice-001-of-002.safetensors"];
        let name = names[random.below(3) as usize];
        let file = server.file(&format!("{prefix}/a/step-0000000020/{name}"));
        let mut bytes = std::fs::read(&file).unwrap();
        let at = random.below(bytes.len() as u64) as usize;
        match random.below(3) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes.truncate(at),
            _ => bytes.clear(),
        }
        if bytes.is_empty() {
            std::fs::remove_file(&file).unwrap()
        } else {
            std::fs::write(&file, bytes).unwrap()
        }
        let good = store.latest_good(&run("a")).await.unwrap().unwrap();
        assert_eq!(good.step, Step::new(10), "case {case}: {name} at {at}");
    }
}

#[tokio::test]
async fn a_record_is_not_written_over_another_ones() {
    let server = S3Server::start();
    let store = in_s3(&server, "p");
    assert!(store.read_record("fence-a.json").await.unwrap().is_none());
    store.write_record("fence-a.json", "1".into(), None).await.unwrap();
    let again = store.write_record("fence-a.json", "2".into(), None).await;
    assert!(matches!(again, Err(RecordError::Changed { .. })), "{again:?}");
    let first = store.read_record("fence-a.json").await.unwrap().unwrap();
    store.write_record("fence-a.json", "2".into(), Some(&first)).await.unwrap();
    let stale = store.write_record("fence-a.json", "3".into(), Some(&first)).await;
    assert!(matches!(stale, Err(RecordError::Changed { .. })), "{stale:?}");
    assert_eq!(store.read_record("fence-a.json").await.unwrap().unwrap().bytes, "2");
}
