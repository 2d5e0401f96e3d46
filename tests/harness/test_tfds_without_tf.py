"""Data sets that tensorflow-datasets prepares: the parts that all of them share."""

import pytest

from experiments.harness import tfds_without_tf


def test_a_download_is_whole_and_the_right_file_or_not_there(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"abc")
    target = tmp_path / "manual" / "archive"
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180
    with pytest.raises(ConnectionError, match=f"has sha256 {abc}, not 00ff"):
        tfds_without_tf.download(source.as_uri(), "00ff", target)
    assert not any(target.parent.iterdir())
    tfds_without_tf.download(source.as_uri(), abc, target)
    assert target.read_bytes() == b"abc"
