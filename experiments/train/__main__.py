from experiments.train.train import main

main()
