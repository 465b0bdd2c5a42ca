"""run.json and data.sha256."""

import pytest

from minlm.training.record import check_same_data


def test_a_run_goes_on_with_the_data_it_began_with(tmp_path):
    check_same_data(tmp_path, "one")
    check_same_data(tmp_path, "one")
    with pytest.raises(ValueError, match=r"the data is not what .* began with: put it back"):
        check_same_data(tmp_path, "another")
