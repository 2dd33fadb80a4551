#![no_main]
// A panic inside the format's library is caught and is an error of the file; the fuzzer's own hook would end the process
// before. One that is not caught still does.
libfuzzer_sys::fuzz_target!(
    init: std::panic::set_hook(Box::new(|_| ())),
    |bytes: &[u8]| mcl_decoder_tests::parquet(bytes)
);
