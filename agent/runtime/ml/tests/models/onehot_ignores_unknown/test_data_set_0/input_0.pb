
2red2red2red2green2green2green2blue2blue2blue2mauve