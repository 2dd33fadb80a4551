//! Names over the wire that must not become paths.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use mcl_checkpoint::{Layout, ServeConfig, serve};
use mcl_proto::v1;
use mcl_proto::v1::checkpoint_service_client::CheckpointServiceClient;
use mcl_proto::v1::put_slice_request::Part;
use std::path::{Path, PathBuf};
use tonic::Code;

/// Everything below a folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn no_call_takes_a_name_that_leads_elsewhere() {
    let outer = tempfile::tempdir().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let root = outer.path().join("store");
    tokio::spawn(serve(listener, ServeConfig::new(root, Layout::RunFolders), std::future::pending()));
    let mut client = CheckpointServiceClient::connect(url).await.unwrap();
    client
        .list_checkpoints(v1::ListCheckpointsRequest { run_id: "a".to_owned(), at_most: None })
        .await
        .unwrap();
    let before = below(outer.path());
    let long = "x".repeat(300);
    let bad = [
        "",
        ".",
        "..",
        "../a",
        "a/../../b",
        "/etc",
        "a\\..\\b",
        "a\0",
        ".a",
        "%2e%2e",
        "\u{2024}\u{2024}",
        "\u{ff0e}\u{ff0e}",
        &long,
    ];
    for run_id in bad.map(str::to_owned) {
        let token = Some(v1::FencingToken { term: 1, generation: 1 });
        let of = || run_id.clone();
        let header = v1::SliceHeader { token, run_id: of(), slices: 1, ..v1::SliceHeader::default() };
        let upload = [v1::PutSliceRequest { part: Some(Part::Header(header)) }];
        let commit = v1::CommitCheckpointRequest { token, run_id: of(), slices: 1, ..Default::default() };
        let list = v1::ListCheckpointsRequest { run_id: of(), at_most: None };
        let answers = [
            client
                .announce_term(v1::AnnounceTermRequest { term: 1, run_id: of(), incarnation: 0 })
                .await
                .map(drop),
            client.put_slice(tokio_stream::iter(upload)).await.map(drop),
            client.commit_checkpoint(commit).await.map(drop),
            client.list_checkpoints(list).await.map(drop),
            client.get_manifest(v1::GetManifestRequest { run_id: of(), step: 0 }).await.map(drop),
            client.get_slice(v1::GetSliceRequest { run_id: of(), step: 0, slice: 0 }).await.map(drop),
        ];
        for answer in answers {
            let status = answer.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{run_id:?}: {status}");
            assert!(status.message().len() < 1000, "{status}");
        }
    }
    assert_eq!(below(outer.path()), before, "nothing was made");
}
