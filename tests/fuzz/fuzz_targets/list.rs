#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mcl_decoder_tests::list(bytes));
