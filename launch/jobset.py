"""`python -m launch.jobset`: see launch/clusters/jobset.py."""

import sys

from launch.clusters.jobset import main

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
