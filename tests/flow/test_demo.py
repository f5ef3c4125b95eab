"""What a visitor runs first."""

import os
import subprocess
import sys


def test_the_demo_walks_its_exams_to_the_ends_that_their_stories_name(tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    ran = subprocess.run(
        [sys.executable, "-m", "broker", "demo", "--once"], cwd=tmp_path, env=env, capture_output=True, timeout=120
    )
    said = ran.stdout.decode()
    assert ran.returncode == 0, said + ran.stderr.decode()
    assert "5 exams, 5 as their story says, 0 not." in said
